import json
import re

import numpy as np
import onnx
import pytest


def test_quantize_writes_a_smaller_model_and_says_what_it_did(onnxq, model):
    small = model.with_name("small.onnx")
    done = onnxq("quantize", model, "-o", small)
    assert done.code == 0
    assert small.stat().st_size < model.stat().st_size / 2
    assert re.search(r"fp6_e2m3 +2 +18,432 +3,776 ", done.out)
    assert f"Wrote {small}" in done.out


def test_the_bytes_of_the_table_add_up_to_the_files(onnxq, model):
    small = model.with_name("small.onnx")
    out = onnxq("quantize", model, "-o", small, "--include", "first").out
    row = r"^(?:fp6_e2m3|left as is|rest of the file|file)(?: +\d+)? +([\d,]+) +([\d,]+)"
    numbers = re.findall(row, out, re.MULTILINE)
    before, after = zip(*((int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in numbers), strict=True)
    assert len(before) == 4
    assert sum(before[:-1]) == before[-1] == model.stat().st_size
    assert sum(after[:-1]) == after[-1] == small.stat().st_size


def test_quantize_json_is_the_report_and_all_there_is_on_stdout(onnxq, model):
    done = onnxq("quantize", model, "-o", model.with_name("small.onnx"), "--recipe", "int4", "--json")
    report = json.loads(done.out)
    assert [each["format"] for each in report["entries"]] == ["uint4", "uint4"]
    assert report["output_bytes"] == model.with_name("small.onnx").stat().st_size
    assert done.err == ""


def test_the_report_file_equals_the_json(onnxq, model):
    report = model.with_name("what.json")
    done = onnxq("quantize", model, "-o", model.with_name("small.onnx"), "--report", report, "--json")
    assert json.loads(report.read_text()) == json.loads(done.out)


def test_a_report_named_html_is_a_page_of_the_same_weights(onnxq, model):
    page = model.with_name("what.html")
    assert onnxq("quantize", model, "-o", model.with_name("small.onnx"), "--report", page).code == 0
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count('<tr id="w') == 2
    assert ">first</th>" in text
    assert "solve and pack weights" in text
    assert text.count('class="area s0"') == 4


def test_findings_are_shown_on_the_page_and_refused_without_one(onnxq, model):
    found = model.with_name("found.json")
    found.write_text(json.dumps({"effects": [{"weight": "first", "recipe": "int4", "kl": 0.25}]}))
    page, small = model.with_name("what.html"), model.with_name("small.onnx")
    assert onnxq("quantize", model, "-o", small, "--report", page, "--findings", found).code == 0
    assert "first: 0.25 (int4)" in page.read_text("utf-8")
    done = onnxq("quantize", model, "-o", small, "--force", "--findings", found)
    assert done.code == 2
    assert "give --report FILE.html too" in done.err


def test_what_allocate_prints_is_shown_on_the_page(onnxq, model):
    pytest.importorskip("onnxruntime")
    folder = model.parent
    np.savez(folder / "x.npz", x=np.random.default_rng(3).normal(size=(16, 64)).astype(np.float32))
    search = ("-f", "int4-g32", "-f", "int8-channel", "--method", "rtn", "--bits", "6.5", "--limit", "16")
    done = onnxq("allocate", model, "--data", folder / "x.npz", *search, "-o", folder / "mine.yaml", "--json")
    assert done.code == 0, done.err
    (folder / "found.json").write_text(done.out)
    page = ("--report", folder / "page.html", "--findings", folder / "found.json")
    assert onnxq("quantize", model, "-o", folder / "small.onnx", "--recipe", folder / "mine.yaml", *page).code == 0
    text = (folder / "page.html").read_text("utf-8")
    assert "Size against loss" in text
    assert "Pareto frontier: 8." in text
    assert re.search(r"<title>second: [\d.e-]+ \(int4-g32\)</title>", text)


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.onnx", "the model itself"), ("there.json", "exists"), ("no/what.json", "folder"), ("x.txt", ".json")],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_work(onnxq, model, name, words):
    model.with_name("there.json").write_text("keep me")
    small = model.with_name("small.onnx")
    done = onnxq("quantize", model, "-o", small, "--report", model.parent / name)
    assert done.code == 6
    assert words in done.err
    assert not small.exists()
    assert model.with_name("there.json").read_text() == "keep me"


def test_include_and_exclude_pick_weights(onnxq, model):
    def formats(*options: str) -> list[str | None]:
        done = onnxq("plan", model, "--json", *options)
        return [each["format"] and each["weight"] for each in json.loads(done.out)["entries"]]

    assert formats("--include", "fir*") == ["first", None]
    assert formats("--exclude", "fir*", "--exclude", "none*") == [None, "second"]


def test_plan_shows_one_row_a_weight_and_the_sums(onnxq, model):
    done = onnxq("plan", model, "--exclude", "second")
    assert re.search(r"^first +MatMul +64x48 +12,288 +2,496 +fp6_e2m3\|fp6_e3m2, per channel", done.out, re.MULTILINE)
    assert re.search(r"^second +MatMul +48x32 +6,144 +6,144 +excluded", done.out, re.MULTILINE)
    assert re.search(r"^2 weights +18,432 +8,640 +1 quantized", done.out, re.MULTILINE)
    assert "  1  excluded" in done.out


@pytest.mark.parametrize("command", [("plan",), ("quantize", "--dry-run"), ("quantize", "--dry-run", "-o", "x.onnx")])
def test_a_plan_writes_nothing(onnxq, model, monkeypatch, command):
    monkeypatch.chdir(model.parent)
    assert onnxq(command[0], model, *command[1:]).code == 0
    assert list(model.parent.iterdir()) == [model]


def test_a_dry_run_is_the_plan(onnxq, model):
    options = ("--recipe", "fp4", "--exclude", "second")
    dry, plan = onnxq("quantize", model, "--dry-run", *options).out, onnxq("plan", model, *options).out
    assert dry == plan


def test_an_output_that_exists_is_replaced_only_by_force(onnxq, model):
    small = model.with_name("small.onnx")
    small.write_text("precious")
    refused = onnxq("quantize", model, "-o", small)
    assert (refused.code, small.read_text()) == (6, "precious")
    assert "--force" in refused.err
    assert onnxq("quantize", model, "-o", small, "--force").code == 0
    onnx.load(small)


def test_recipe_none_says_that_nothing_was_quantized(onnxq, model):
    copy = model.with_name("copy.onnx")
    done = onnxq("quantize", model, "-o", copy, "--recipe", "none")
    assert "byte-identical copy" in done.out
    assert copy.read_bytes() == model.read_bytes()


def test_non_finite_overrides_the_recipe(onnxq, broken_weight):
    small = broken_weight.with_name("small.onnx")
    refused = onnxq("quantize", broken_weight, "-o", small)
    assert refused.code == 8
    assert "first" in refused.err
    skipped = onnxq("quantize", broken_weight, "-o", small, "--non-finite", "skip", "--json")
    assert [each["format"] for each in json.loads(skipped.out)["entries"]] == [None, "fp6_e2m3"]
    clamped = onnxq("quantize", broken_weight, "-o", small, "--non-finite", "clamp", "--force", "--json")
    assert all(each["format"] for each in json.loads(clamped.out)["entries"])


def test_a_model_is_only_written_under_the_name_of_one(onnxq, model):
    kept = model.with_name("notes.txt")
    kept.write_text("mine")
    for name in ("notes.txt", "new.txt", "new"):
        done = onnxq("quantize", model, "-o", model.with_name(name), "--force")
        assert done.code == 6
        assert f"{name}' does not end in .onnx; call it '{name}.onnx'" in done.err.replace("\n", " ")
    assert kept.read_text() == "mine"
    assert sorted(each.name for each in model.parent.iterdir()) == sorted([model.name, kept.name])
    assert onnxq("quantize", model, "-o", model.with_name("NEW.ONNX")).code == 0


@pytest.mark.parametrize("command", [("calibrate",), ("allocate", "--bits", "4")])
def test_what_is_no_model_does_not_replace_one(onnxq, model, command):
    before = model.read_bytes()
    done = onnxq(*command, model, "--calib", "synthetic", "-o", model, "--force")
    assert done.code == 6
    assert "does not end in" in done.err
    assert model.read_bytes() == before
