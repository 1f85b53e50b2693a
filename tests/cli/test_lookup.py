import json

import pytest

from onnxq.formats import ALL_FORMATS, SCALE_TYPES
from onnxq.recipes import parse_recipe, preset_names

COMMANDS = (
    *("quantize", "calibrate", "plan", "inspect", "export", "allocate", "evaluate", "compare", "sensitivity"),
    *("generate", "demo", "recipes", "formats", "doctor"),
)


def test_version(onnxq):
    done = onnxq("--version")
    assert (done.code, done.out.split()[0]) == (0, "onnxq")


def test_help_lists_every_command(onnxq):
    done = onnxq("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f" {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_examples(onnxq, command):
    done = onnxq(command, "--help")
    assert done.code == 0
    examples = done.out[done.out.index("Examples") :].splitlines()[1:]
    lines = [line.strip() for line in examples if line.strip()]
    assert lines
    assert any(line.startswith(f"onnxq {command}") for line in lines)
    assert all(line.startswith("onnxq ") for line in lines)


def test_help_keeps_what_stands_in_brackets(onnxq):
    assert "pip install 'onnxq[export]'" in onnxq("export", "--help").out


def test_formats_lists_every_format_and_scale(onnxq):
    out = onnxq("formats").out
    assert all(name in out for name in (*ALL_FORMATS, *SCALE_TYPES))
    listed = json.loads(onnxq("formats", "--json").out)
    assert [each["name"] for each in listed["formats"]] == list(ALL_FORMATS)
    by_name = {each["name"]: each for each in listed["formats"]}
    assert by_name["fp6_e3m2"] == {
        "name": "fp6_e3m2",
        "bits": 6,
        "largest": 28.0,
        "smallest": 0.0625,
        "values": 63,
        "onnx_type": "FLOAT6E3M2",
    }
    assert [each["name"] for each in listed["scales"]] == list(SCALE_TYPES)


def test_recipes_lists_every_preset(onnxq):
    out = onnxq("recipes").out
    assert all(f"\n{name} " in out for name in preset_names())
    assert [each["name"] for each in json.loads(onnxq("recipes", "--json").out)] == preset_names()


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_shown_as_yaml_that_is_a_recipe(onnxq, name):
    assert parse_recipe(onnxq("recipes", name).out).name == name


def test_a_recipe_file_is_shown_as_it_is_written(onnxq, tmp_path):
    text = "# mine\nextends: fp6\nrules:\n- match: {name: '*down*'}\n  skip: too sensitive\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert onnxq("recipes", tmp_path / "mine.yaml").out == text
    assert len(json.loads(onnxq("recipes", tmp_path / "mine.yaml", "--json").out)["rules"]) == 2
