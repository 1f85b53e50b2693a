import json
import re
from pathlib import Path

import numpy as np
import pytest

DIGITS = Path(__file__).parents[2] / "samples" / "digits"
CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"

pytest.importorskip("onnxruntime")


@pytest.fixture
def data(tmp_path):
    """Inputs of the two-layer model with labels called `right`."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(20, 64)).astype(np.float32), right=np.arange(20) % 32)
    return tmp_path / "d.npz"


def test_evaluate_measures_accuracy(onnxq):
    done = onnxq("evaluate", DIGITS / "resnet.onnx", "--data", DIGITS / "test.npz", "--limit", "100")
    assert re.search(r"^accuracy +\d+\.\d\d% +\d+ of 100 samples", done.out, re.MULTILINE)
    assert "products with float weights" in done.out


def test_labels_are_an_array_of_the_data_by_name_or_a_file(onnxq, model, data, tmp_path):
    arrays = np.load(data)
    np.save(tmp_path / "right.npy", arrays["right"])
    np.savez(tmp_path / "x.npz", x=arrays["x"])
    by_name = onnxq("evaluate", model, "--data", data, "--labels", "right", "--json")
    by_file = onnxq("evaluate", model, "--data", tmp_path / "x.npz", "--labels", tmp_path / "right.npy", "--json")
    values = [json.loads(done.out)["value"] for done in (by_name, by_file)]
    assert values[0] == values[1]


def test_labels_of_a_wrong_name_are_pointed_out(onnxq, model, data):
    done = onnxq("evaluate", model, "--data", data, "--labels", "rihgt")
    assert done.code == 7
    assert "did you mean 'right'" in done.err


def test_evaluate_measures_perplexity_and_says_how_it_ran(onnxq):
    done = onnxq("evaluate", CODE_LM / "model.onnx", "--tokens", CODE_LM / "heldout.npy", "--limit", "2", "--json")
    found = json.loads(done.out)
    assert (found["metric"], found["samples"], found["tokens"]) == ("perplexity", 2, 510)
    assert found["execution"]["plain"] == 43


def test_compare_shows_outputs_and_the_layers_furthest_apart(onnxq, model, data, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.load(data)["x"])
    onnxq("quantize", model, "-o", tmp_path / "small.onnx", "--recipe", "fp4")
    done = onnxq("compare", model, tmp_path / "small.onnx", "--data", tmp_path / "x.npz", "--worst", "1")
    assert done.code == 0
    assert re.search(r"^y +MatMul +\d+\.\d +0\.\d+ ", done.out, re.MULTILINE)
    assert "and 1 closer layer (--worst N" in done.out
    found = json.loads(
        onnxq("compare", model, tmp_path / "small.onnx", "--data", tmp_path / "x.npz", "--json", "--worst", "0").out
    )
    assert [each["name"] for each in found["layers"]] == ["h", "r"]


def test_compare_along_the_graph_shows_decisions_samples_and_the_jump(onnxq, model, data, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.load(data)["x"])
    onnxq("quantize", model, "-o", tmp_path / "small.onnx", "--recipe", "int2", "--exclude", "first")
    done = onnxq("compare", model, tmp_path / "small.onnx", "--data", tmp_path / "x.npz", "--along", "--limit", "20")
    assert re.search(
        r"^y: the same best in \d+\.\d\d% of 20 rows; \d+\.\d\d% of the best 5 shared$", done.out, re.MULTILINE
    )
    assert re.search(r"^samples furthest apart: (\d+ \(\d+\.\d dB\)(, )?){5}$", done.out, re.MULTILINE)
    assert re.search(r"^h +MatMul +equal.*\nr +Relu +equal", done.out, re.MULTILINE)
    assert "The error jumps nowhere" in done.out


def test_a_model_equals_itself(onnxq, model, data, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.load(data)["x"])
    done = onnxq("compare", model, model, "--data", tmp_path / "x.npz", "--worst", "0")
    assert re.search(r"^y +MatMul +equal +1\.000000 +0$", done.out, re.MULTILINE)
    assert "layer" not in done.out


def test_generate_streams_the_prompt_and_its_continuation(onnxq):
    model = (CODE_LM / "model.onnx", "--tokenizer", CODE_LM / "tokenizer.json", "--prompt", "import ", "-n", "5")
    done = onnxq("generate", *model)
    made = json.loads(onnxq("generate", *model, "--json").out)
    assert len(made["tokens"]) == 5
    assert done.out == f"import {made['text']}\n"
    assert "5 tokens up to the limit" in done.err


def test_generate_stops_before_a_stop_text(onnxq):
    model = (CODE_LM / "model.onnx", "--tokenizer", CODE_LM / "tokenizer.json", "--prompt", "def f(", "-n", "40")
    done = onnxq("generate", *model, "--stop", ")")
    assert ")" not in done.out
    assert "up to a stop text" in done.err


def test_inspect_shows_operators_weights_and_fit(onnxq, model):
    done = onnxq("inspect", model)
    assert re.search(r"2 MatMul +1 Relu", done.out)
    assert re.search(
        r"^first +MatMul +float +64x48 +12,288 +\d\.\d+ +[23]\.\d +3\d\.\d +2\d\.\d ", done.out, re.MULTILINE
    )
    assert re.search(r"^2 weights +18,432", done.out, re.MULTILINE)
    found = json.loads(onnxq("inspect", model, "--json").out)
    assert [each["name"] for each in found["weights"]] == ["first", "second"]
    assert found["mean_sqnr_db"]["int8"] > found["mean_sqnr_db"]["fp6-e2m3"] > found["mean_sqnr_db"]["int4"]


def test_inspect_shows_formats_and_bits_of_a_quantized_file(onnxq, model, tmp_path):
    onnxq("quantize", model, "-o", tmp_path / "small.onnx", "--recipe", "nvfp4")
    done = onnxq("inspect", tmp_path / "small.onnx")
    row = r"^first_quantized +MatMulFP4E2M1 +64x48 +fp4_e2m1 +groups of 16, e4m3 +1,732 +4 +4\.51$"
    assert re.search(row, done.out, re.MULTILINE)
    assert "for target ort" in done.out
    assert "Float weights" not in done.out
    found = json.loads(onnxq("inspect", tmp_path / "small.onnx", "--json").out)
    assert [each["bits"] for each in found["stored"]] == [4, 4]
    assert "nvfp4" in found["made_by"]["recipe"]


def test_inspect_with_data_shows_activations_and_what_stands_out(onnxq, model, tmp_path):
    x = np.random.default_rng(2).normal(size=(50, 64)).astype(np.float32)
    x[:, 5] *= 100
    np.savez(tmp_path / "x.npz", x=x)
    done = onnxq("inspect", model, "--calib", tmp_path / "x.npz")
    assert re.search(r"^x +first +-\d+ +\d+ +\d+\.\d +64 +1$", done.out, re.MULTILINE)
    assert re.search(r"^  x into first: 1 of 64 channels .* smoothing", done.out, re.MULTILINE)
    found = json.loads(onnxq("inspect", model, "--calib", tmp_path / "x.npz", "--json").out)
    assert [each["tensor"] for each in found["activations"]] == ["x", "r"]


def test_inspect_without_fit_reads_no_weight(onnxq, broken_weight):
    done = onnxq("inspect", broken_weight, "--no-fit")
    assert done.code == 0
    assert "SQNR" not in done.out
