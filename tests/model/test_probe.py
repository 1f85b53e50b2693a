"""Seeing values inside a model: more outputs, in memory or in a temporary file, and nothing beside the model."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from onnxq.errors import ModelError, OutputError
from onnxq.model import temporary
from onnxq.model.load import load
from onnxq.model.probe import runnable

MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    model = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("kind", [bytes, str])
def test_inner_values_become_outputs(kind: type, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is str:
        monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", 0)
    model = load(source)
    x = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    expected = onnxruntime.InferenceSession(source).run(None, {"x": x})[0]
    with runnable(model, ["r", "y", "h", "x", "h"]) as opened:
        assert isinstance(opened, kind)
        session = onnxruntime.InferenceSession(opened)
        assert [output.name for output in session.get_outputs()] == ["y", "r", "h", "x"]
        y, r, h, same = session.run(None, {"x": x})
    assert np.array_equal(y, expected)
    assert np.array_equal(same, x)
    assert np.allclose(h, x @ model.ir.graph.initializers["w"].const_value.numpy(), atol=1e-5)
    assert np.array_equal(r, np.maximum(h, 0))
    assert [output.name for output in model.ir.graph.outputs] == ["y"]
    assert [path.name for path in source.parent.iterdir()] == ["m.onnx"]
    if kind is str:
        assert not Path(opened).parent.exists()


def test_unknown_value_is_named(source: Path) -> None:
    with pytest.raises(ModelError, match="no value 'rr'; did you mean 'r'"), runnable(load(source), ["rr"]):
        pass


def test_large_model_is_written_where_asked(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", 0)
    (tmp_path / "work").mkdir()
    with runnable(load(source), folder=tmp_path / "work") as opened:
        assert (tmp_path / "work") in Path(str(opened)).parents
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_that_cannot_be_had_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", 0)
    model = load(source)
    nowhere = tmp_path / "nowhere"
    with pytest.raises(OutputError, match=r"temporary folder in '.*nowhere'"), runnable(model, folder=nowhere):
        pass
    monkeypatch.setattr("tempfile.tempdir", str(nowhere))
    with pytest.raises(OutputError, match="TMPDIR"), runnable(model):
        pass
