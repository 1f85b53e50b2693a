import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq

SHAPES = Path(__file__).parents[2] / "samples" / "shapes"


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(SHAPES))
    import make as module

    return module


@pytest.mark.parametrize("form", ["plain", "grouped"])
def test_a_shape_is_a_decoder_with_a_cache_that_quantizes_and_runs(form, tmp_path):
    path = tmp_path / "tiny.onnx"
    command = [sys.executable, str(SHAPES / "make.py"), "tiny", "-o", str(path), "--form", form]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    report = onnxq.quantize(path, "fp6", output=tmp_path / "fp6.onnx")
    assert len(report.quantized) == 2 * 7
    cells = np.zeros((1, 2, 0, 16), np.float16)
    results = []
    for model in (path, tmp_path / "fp6.onnx"):
        opened = onnxruntime.InferenceSession(model)
        feed = {each.name: cells for each in opened.get_inputs() if "past" in each.name}
        feed |= {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), np.int64)}
        if form == "plain":
            feed["position_ids"] = np.arange(3)[None]
        logits, *present = opened.run(None, feed)
        assert logits.shape == (1, 3, 512)
        assert {each.shape for each in present} == {(1, 2, 3, 16)}
        results.append(logits.astype(np.float64).ravel())
    assert 0.99 < np.corrcoef(*results)[0, 1] < 1


def test_weights_go_to_the_file_a_block_at_a_time(make, tmp_path):
    sizes = make.Decoder(4096, 1024, 2, 8, 2, 4096)
    path = tmp_path / "model.onnx"
    tracemalloc.start()
    with (tmp_path / "model.onnx.data").open("wb") as file:
        weights = make.RandomWeights(file, "model.onnx.data", pool=1 << 16)
        onnx.save(make.build(sizes, weights, "plain", onnx.TensorProto.FLOAT16), path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "model.onnx.data").stat().st_size > 60_000_000
    assert peak < 3_000_000
