import json
import re
from pathlib import Path

import numpy as np
import pytest

from onnxq.recipes import load_recipe

DIGITS = Path(__file__).parents[2] / "samples" / "digits"
CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"

pytest.importorskip("onnxruntime")


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(200, 64)).astype(np.float32))
    return tmp_path / "d.npz"


def test_sensitivity_ranks_layers_and_tells_the_speed(onnxq, model, data):
    done = onnxq("sensitivity", model, "--data", data, "-r", "int2-g32", "-r", "fp6", "--worst", "3")
    assert done.code == 0, done.err
    rows = re.findall(r"^(first|second) +MatMul +\d+x\d+ +(\S+) .* (\d\.\d\de[+-]\d+) +\d", done.out, re.MULTILINE)
    assert [recipe for _, recipe, _ in rows] == ["int2-g32", "int2-g32", "fp6"]
    assert "and 1 more" in done.out
    assert re.search(r"4 variants on 16 samples in one session, .* each; loading the model for each", done.out)
    found = json.loads(onnxq("sensitivity", model, "--data", data, "--json").out)
    assert [each["recipe"] for each in found["effects"]] == ["int4", "int4"]


@pytest.mark.parametrize(
    ("view", "wanted"),
    [("noise", r"gaussian noise at 30 dB, on 16 samples"), ("spikes", r"^r +\d\.\d +\d.* second *$")],
)
def test_other_views(onnxq, model, data, view, wanted):
    arguments = ("sensitivity", model, "--data", data, "--view", view, "--sqnr", "30")
    done = onnxq(*arguments)
    assert re.search(wanted, done.out, re.MULTILINE), done.out + done.err
    assert json.loads(onnxq(*arguments, "--json").out)["model"] == str(model)


def test_allocate_writes_a_recipe_that_quantize_takes(onnxq, model, data, tmp_path):
    recipe, small = tmp_path / "mixed.yaml", tmp_path / "small.onnx"
    done = onnxq("allocate", model, "--data", data, "--bits", "4", "--method", "clip", "-o", recipe)
    assert done.code == 0, done.err
    assert re.search(r"^int3-g32 for all +3\.\d{3} ", done.out, re.MULTILINE)
    assert f"Wrote {recipe}: " in done.out
    assert all(rule.weight.method == "clip" for rule in load_recipe(recipe).rules)
    again = onnxq("allocate", model, "--calib", data, "--bits", "4", "-o", recipe)
    assert again.code == 6
    assert "--force" in again.err
    converted = json.loads(onnxq("quantize", model, "-r", recipe, "-o", small, "--json").out)
    bits = 8 * sum(each["result_bytes"] for each in converted["entries"]) / (64 * 48 + 48 * 32)
    assert bits <= 4


def test_allocate_by_size_and_formats(onnxq, model, data, tmp_path):
    found = json.loads(
        onnxq(
            "allocate", model, "--data", data, "--size", "40 kB", "-f", "fp4", "-f", "int8", "--method", "rtn",
            "-o", tmp_path / "a.yaml", "--json",
        ).out
    )  # fmt: skip
    assert {each["recipe"] for each in found["effects"]} == {"fp4", "int8"}
    assert load_recipe(tmp_path / "a.yaml").model_dump(mode="json", exclude_defaults=True) == found["recipe"]


def test_a_size_that_is_too_small_is_told_the_least_that_is_not(onnxq, model, data, tmp_path):
    arguments = ("allocate", model, "--data", data, "-f", "int8", "--method", "rtn", "-o", tmp_path / "a.yaml")
    refused = onnxq(*arguments, "--size", "5kB")
    least = int(re.search(r"allow a file of (\d+)kB", " ".join(refused.err.split()))[1])
    assert onnxq(*arguments, "--size", f"{least - 1}kB").code == 2
    assert onnxq(*arguments, "--size", f"{least}kB").code == 0
    onnxq("quantize", model, "-r", tmp_path / "a.yaml", "-o", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").stat().st_size <= 1000 * least


def test_layers_are_judged_on_some_data(onnxq, model, data):
    assert "give --data D" in onnxq("sensitivity", model).err
    assert onnxq("sensitivity", model, "--calib", data).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--bits", "4"), 2, "where should the recipe go"),
        (("-o", "a.yaml"), 2, "give a budget"),
        (("--size", "40 pounds", "-o", "a.yaml"), 2, "write it as 40MB"),
        (("--bits", "4", "-o", "a.yaml", "--method", "gtpq"), 2, "did you mean 'gptq'"),
        (("--bits", "4", "-o", "a.yaml", "-f", "int33-g4"), 2, "no format 'int33'"),
        (("--bits", "1.5", "-o", "a.yaml", "--method", "rtn"), 2, "2.62 at least"),
    ],
)
def test_mistakes_are_named(onnxq, model, data, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    done = onnxq("allocate", model, "--data", data, *arguments)
    assert done.code == code
    assert message in done.err
    assert not (tmp_path / "a.yaml").exists()


def test_evaluate_checks_a_language_model(onnxq):
    arguments = (
        "evaluate",
        CODE_LM / "model.onnx",
        "--tokens",
        CODE_LM / "heldout.npy",
        "--seq",
        "32",
        "--limit",
        "2",
        "--checks",
    )
    done = onnxq(*arguments)
    assert re.search(r"^copying +\d\d\.\d\d% +of 480 random tokens", done.out, re.MULTILINE), done.err
    assert json.loads(onnxq(*arguments, "--json").out)["checks"]["tokens"] == 62


def test_evaluate_checks_a_classifier_on_an_attack_of_another(onnxq, tmp_path):
    small = tmp_path / "small.onnx"
    onnxq("quantize", DIGITS / "resnet.onnx", "-o", small, "--recipe", "int4")
    arguments = ("evaluate", small, "--data", DIGITS / "test.npz", "--limit", "20", "--checks")
    done = onnxq(*arguments, "--attack", DIGITS / "resnet.onnx")
    assert re.search(r"^attacked +\d+\.\d\d% +along the gradient \(FGSM\), by 0\.1 at most, 20", done.out, re.MULTILINE)


def test_a_model_that_gives_nan_is_refused(onnxq, broken_weight, data):
    done = onnxq("sensitivity", broken_weight, "--data", data)
    assert done.code == 8
    assert "scores are NaN" in done.err
