"""A part of a model runs by itself, and takes no more of the weights than it reads."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxq.model import temporary
from onnxq.model.load import load
from onnxq.model.segment import segment
from onnxq.model.taps import Tap

MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }
"""


@pytest.mark.parametrize("limit", [temporary.IN_MEMORY_BYTES, 0])
def test_a_part_reads_what_is_given_and_has_its_own_weights_only(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", limit)
    rng = np.random.default_rng(0)
    w, v, r = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(3))
    proto = onnx.parser.parse_model(MODEL)
    proto.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    given = {"r": onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [None, 32])}
    wanted = Tap(["y"], [], [onnx.ValueInfoProto(name="y")])
    with segment(load(tmp_path / "m.onnx"), given, [wanted]) as opened:
        assert isinstance(opened, str) == (limit == 0)
        size = len(opened) if isinstance(opened, bytes) else Path(opened).with_name("model.onnx.data").stat().st_size
        assert v.nbytes <= size < v.nbytes + 1024
        found = onnxruntime.InferenceSession(opened).run(None, {"r": r})[0]
    assert np.allclose(found, r @ v, atol=1e-4)
