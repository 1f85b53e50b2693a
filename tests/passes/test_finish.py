"""Products with a weight under one of onnxq's operators become one node each."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.api import quantize_proto

RECIPE = onnxq.load_recipe("fp6")

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[M,96] x, float[64] given) => (float[M,64] y)
<float[96,64] w, float[64,96] turned, float[64] b, float[1,64] row, float[1] one>
{ %s }"""


def quantized(body, target="ort"):
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT % body)
    constants = {"w": (96, 64), "turned": (64, 96), "b": (64,), "row": (1, 64), "one": (1,)}
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in constants.items()
    )
    return model, quantize_proto(model, RECIPE, target=target)[0]


def run(model, m=3):
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((m, 96)).astype(np.float32), "given": np.arange(64, dtype=np.float32)}
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = MatMul(x, w)", ["MatMulFP6E2M3"]),
        ("p = MatMul(x, w) y = Add(p, b)", ["LinearFP6E2M3"]),
        ("p = MatMul(x, w) y = Add(b, p)", ["LinearFP6E2M3"]),
        ("p = MatMul(x, w) y = Add(p, given)", ["LinearFP6E2M3"]),
        ("p = MatMul(x, w) y = Add(p, row)", ["MatMulFP6E2M3", "Add"]),
        ("p = MatMul(x, w) y = Add(p, one)", ["MatMulFP6E2M3", "Add"]),
        ("p = MatMul(x, w) q = Add(p, b) y = Mul(p, q)", ["MatMulFP6E2M3", "Add", "Mul"]),
        ("y = Gemm(x, w)", ["MatMulFP6E2M3"]),
        ("y = Gemm(x, w, b)", ["LinearFP6E2M3"]),
        ("y = Gemm<transB = 1>(x, turned, b)", ["LinearFP6E2M3"]),
        ("y = Gemm(x, w, row)", ["DequantizeFP6E2M3", "Gemm"]),
        ("y = Gemm<alpha = 0.5>(x, w, b)", ["DequantizeFP6E2M3", "Gemm"]),
        ("y = Gemm<beta = 2.0>(x, w, b)", ["DequantizeFP6E2M3", "Gemm"]),
    ],
)
def test_one_node_for_a_product_and_its_bias(body, left):
    original, made = quantized(body)
    assert [node.op_type for node in made.graph.node] == left
    onnx.checker.check_model(made, full_check=True)
    exact, rounded = run(original), run(made)
    assert np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)


def test_the_node_is_called_as_the_product_was():
    _, made = quantized("[product] p = MatMul(x, w) [sum] y = Add(p, b)")
    (node,) = made.graph.node
    assert (node.name, list(node.output)) == ("product", ["y"])


def test_on_request_integers_leave_for_onnxq_kernels_too():
    model, _ = quantized("p = MatMul(x, w) y = Add(p, b)")
    ours, theirs = (quantize_proto(model, "int4", target=target)[0] for target in ("native", "ort"))
    assert [node.op_type for node in ours.graph.node] == ["LinearUINT4Asymmetric"]
    assert [node.op_type for node in theirs.graph.node] == ["DequantizeLinear", "MatMul", "Add"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    x = np.random.default_rng(2).standard_normal((5, 96)).astype(np.float32)
    feeds = {"x": x, "given": np.zeros(64, np.float32)}
    results = [
        onnxruntime.InferenceSession(each.SerializeToString(), options).run(None, feeds)[0] for each in (ours, theirs)
    ]
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)
