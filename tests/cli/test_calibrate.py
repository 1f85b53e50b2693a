import json

import numpy as np
import pytest


@pytest.fixture
def data(model):
    path = model.with_name("data.npy")
    np.save(path, np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32))
    return path


@pytest.fixture
def written(model):
    """The names of the files beside the model, but for itself and the data."""
    return lambda: sorted(each.name for each in model.parent.iterdir() if each.name not in ("model.onnx", "data.npy"))


def test_calibration_ahead_and_at_once_give_the_same_model(onnxq, model, data, written):
    stats, first, second = (model.with_name(name) for name in ("s.safetensors", "first.onnx", "second.onnx"))
    done = onnxq("calibrate", model, "--calib", data, "-o", stats)
    assert done.code == 0, done.err
    assert "2 tensors seen on 20 samples" in done.out
    assert f"Wrote {stats}" in done.out
    assert onnxq("quantize", model, "-o", first, "-r", "int4-gptq", "--stats", stats).code == 0
    done = onnxq("quantize", model, "-o", second, "-r", "int4-gptq", "--calib", data, "--at-once")
    assert "note: calibrated on 20 samples" in done.out
    assert first.read_bytes() == second.read_bytes()
    assert onnxq("quantize", model, "-o", model.with_name("rtn.onnx"), "-r", "int4").code == 0
    assert first.read_bytes() != model.with_name("rtn.onnx").read_bytes()
    assert written() == ["first.onnx", "rtn.onnx", "s.safetensors", "second.onnx"]


def test_calibrate_json(onnxq, model, data):
    stats = model.with_name("s.safetensors")
    done = onnxq("calibrate", model, "--calib", data, "-o", stats, "--samples", "7", "-r", "int4-gptq", "--json")
    assert json.loads(done.out) == {
        "output": str(stats),
        "samples": 7,
        "synthetic": False,
        "tensors": 2,
        "size_bytes": stats.stat().st_size,
    }
    assert done.err == ""


def test_synthetic_data_is_told(onnxq, model):
    done = onnxq(
        "quantize", model, "-o", model.with_name("q.onnx"), "-r", "int4-gptq", "--calib", "synthetic", "--json"
    )
    assert any("calibrated on 128 synthetic samples" in each for each in json.loads(done.out)["warnings"])
    done = onnxq("calibrate", model, "-o", model.with_name("s.safetensors"), "--calib", "synthetic")
    assert "seen on 128 synthetic samples" in done.out


def test_a_cache_is_made_and_used(onnxq, model, data, monkeypatch):
    cache = model.with_name("c.safetensors")
    options = ("-r", "int4-gptq", "--calib", data, "--calib-cache", cache)
    assert onnxq("quantize", model, "-o", model.with_name("a.onnx"), *options).code == 0
    monkeypatch.setattr("onnxq.statistics.cache.collect", None)
    assert onnxq("quantize", model, "-o", model.with_name("b.onnx"), *options).code == 0
    assert model.with_name("a.onnx").read_bytes() == model.with_name("b.onnx").read_bytes()
    done = onnxq("quantize", model, "-o", model.with_name("c.onnx"), *options, "--samples", "19")
    assert (done.code, "its data differs" in done.err) == (7, True)
    assert not model.with_name("c.onnx").exists()


def test_data_for_a_recipe_that_needs_none_is_told(onnxq, model, data):
    done = onnxq("quantize", model, "-o", model.with_name("q.onnx"), "-r", "int4", "--calib", data)
    assert "warning: nothing that the recipe does here looks at activations: the data was not used" in done.out
    done = onnxq("quantize", model, "-o", model.with_name("r.onnx"), "-r", "int4", "--stats", "nowhere.safetensors")
    assert "warning: nothing that the recipe does here looks at activations: the statistics were not used" in done.out


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "gptq needs calibration data: --calib DATA, or --calib synthetic"),
        (["--calib", "nowhere.npz"], 7, "data file 'nowhere.npz' does not exist"),
        (["--calib", "synthetic", "--stats", "s"], 2, "either calibration data (--calib) or a file of statistics"),
        (["--calib-cache", "c"], 2, "--calib-cache keeps what --calib finds"),
        (["--stats", "model.onnx"], 7, "damaged"),
        (["--stats", "nowhere"], 7, "there is no file of statistics 'nowhere'"),
        (["--calib", "tokens.npy"], 7, "no input takes token ids"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(options, code, says, onnxq, model, written, monkeypatch):
    monkeypatch.chdir(model.parent)
    np.save("tokens.npy", np.arange(4000))
    done = onnxq("quantize", model, "-o", "out.onnx", "-r", "int4-gptq", *options)
    assert (done.code, says in done.err) == (code, True), done.err
    assert written() == ["tokens.npy"]


def test_a_file_without_statistics_is_told(onnxq, model, data):
    done = onnxq("calibrate", model, "--calib", data, "-o", model.with_name("none.safetensors"), "-r", "fp6")
    assert "recipe 'fp6' looks at no activation, so the file is empty" in done.out


def test_statistics_are_not_overwritten(onnxq, model, data):
    stats = model.with_name("s.safetensors")
    stats.write_text("mine")
    done = onnxq("calibrate", model, "--calib", data, "-o", stats)
    assert (done.code, "exists; pass --force" in done.err) == (6, True)
    assert stats.read_text() == "mine"
    assert onnxq("calibrate", model, "--calib", data, "-o", stats, "--force").code == 0


def test_nan_is_named(onnxq, broken_weight, data):
    out = broken_weight.with_name("q.onnx")
    done = onnxq("quantize", broken_weight, "-o", out, "-r", "int4-gptq", "--calib", data, "--non-finite", "skip")
    assert done.code == 8
    assert "activation 'r' holds NaN or Inf on the calibration data, sample 0 to 3" in done.err
    assert not out.exists()
