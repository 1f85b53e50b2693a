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

HEAD = '<ir_version: 10, opset_import: ["": 21, "own": 1]>\n'
INSIDE = {
    "the graph": "g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }",
    "a function": """g (float[N, 32] x) => (float[N, 32] y) { h = MatMul(x, w) r = Relu(h) y = own.F(r) }
        <domain: "own", opset_import: ["": 21]> F (a) => (b) { v = Constant() b = MatMul(a, v) }""",
    "a branch": """g (float[N, 32] x) => (float[N, 32] y)
        { h = MatMul(x, w) r = Relu(h) yes = Constant<value=bool {1}>()
        y = If (yes) <
            then_branch = then () => (float[N, 32] p) { v = Constant() p = MatMul(r, v) },
            else_branch = other () => (float[N, 32] q) { q = Relu(r) }> }""",
}


def model_with(inside: str, w: np.ndarray, v: np.ndarray) -> onnx.ModelProto:
    """A model of two products, the weight `v` of the second in the graph itself or deeper."""
    proto = onnx.parser.parse_model(HEAD + INSIDE[inside])
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    if inside == "the graph":
        proto.graph.initializer.append(numpy_helper.from_array(v, "v"))
        return proto
    nodes = proto.functions[0].node if proto.functions else proto.graph.node[-1].attribute[0].g.node
    nodes[0].attribute.append(onnx.helper.make_attribute("value", numpy_helper.from_array(v, "v")))
    return proto


@pytest.mark.parametrize("limit", [temporary.IN_MEMORY_BYTES, 0])
@pytest.mark.parametrize("inside", INSIDE)
def test_a_part_reads_what_is_given_and_has_its_own_weights_only(
    inside: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "IN_MEMORY_BYTES", limit)
    rng = np.random.default_rng(0)
    w, v, r = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(3))
    (tmp_path / "m.onnx").write_bytes(model_with(inside, w, v).SerializeToString())
    given = {"r": onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [None, 32])}
    wanted = Tap(["y"], [], [onnx.ValueInfoProto(name="y")])
    with segment(load(tmp_path / "m.onnx"), given, [wanted]) as opened:
        assert isinstance(opened, str) == (limit == 0)
        files = [] if isinstance(opened, bytes) else [*Path(opened).parent.iterdir()]
        size = len(opened) if isinstance(opened, bytes) else sum(each.stat().st_size for each in files)
        assert v.nbytes <= size < v.nbytes + w.nbytes
        found = onnxruntime.InferenceSession(opened).run(None, {"r": r})[0]
    assert np.allclose(found, r @ v, atol=1e-4)
