"""What is said to run in onnxruntime's integer kernels is what onnxruntime makes of it, and computes the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.execution import execution
from onnxq.model.load import from_proto
from onnxq.recipes import parse_recipe

KERNELS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")
UINT8, INT8 = "{format: uint8, symmetric: false}", "{format: int8}"
DYNAMIC = "{format: uint8, symmetric: false, range: dynamic}"
ROWS = "g (float[n,16] x) => (float[n,8] y) { %s }"
TOKENS = "g (float[n,3,16] x) => (float[n,3,8] y) { %s }"
IMAGES = "g (float[n,4,8,8] x) => (float[n,4,4,4] y) { %s }"
MATRIX, FILTERS, VECTOR = (16, 8), (4, 4, 3, 3), (8,)

# (graph, weights, activation, integer kernels).
CASES = {
    "tokens": (TOKENS % "y = MatMul(x, w)", {"w": MATRIX}, UINT8, "MatMulIntegerToFloat"),
    "tokens, symmetric": (TOKENS % "y = MatMul(x, w)", {"w": MATRIX}, INT8, "MatMulIntegerToFloat"),
    "tokens, dynamic": (TOKENS % "y = MatMul(x, w)", {"w": MATRIX}, DYNAMIC, "DynamicQuantizeMatMul"),
    "tokens with a bias": (TOKENS % "m = MatMul(x, w) y = Add(m, b)", {"w": MATRIX, "b": VECTOR}, UINT8, KERNELS[2]),
    "two": (TOKENS % "h = MatMul(x, v) y = MatMul(h, w)", {"v": (16, 16), "w": MATRIX}, UINT8, KERNELS[1:3]),
    "rows": (ROWS % "y = MatMul(x, w)", {"w": MATRIX}, UINT8, "MatMulIntegerToFloat"),
    "rows with a bias": (ROWS % "m = MatMul(x, w) y = Add(b, m)", {"w": MATRIX, "b": VECTOR}, UINT8, "QGemm"),
    "rows, dynamic": (ROWS % "m = MatMul(x, w) y = Add(b, m)", {"w": MATRIX, "b": VECTOR}, DYNAMIC, ()),
    "gemm": (ROWS % "y = Gemm(x, w)", {"w": MATRIX}, UINT8, "QGemm"),
    "gemm, transposed": (ROWS % "y = Gemm<transB=1>(x, w, b)", {"w": (8, 16), "b": VECTOR}, INT8, "QGemm"),
    "gemm and relu": (ROWS % "m = Gemm(x, w, b) y = Relu(m)", {"w": MATRIX, "b": VECTOR}, UINT8, "QGemm"),
    "gemm, scaled": (ROWS % "y = Gemm<alpha=0.5>(x, w, b)", {"w": MATRIX, "b": VECTOR}, UINT8, ()),
    "gemm, wide bias": (ROWS % "y = Gemm(x, w, b)", {"w": MATRIX, "b": (1, 8)}, UINT8, ()),
    "gemm, dynamic": (ROWS % "y = Gemm(x, w, b)", {"w": MATRIX, "b": VECTOR}, DYNAMIC, ()),
    "conv": (IMAGES % "h = Conv(x, v) y = Conv(h, w)", {"v": FILTERS, "w": FILTERS}, UINT8, "QLinearConv"),
    "conv, relu": (
        IMAGES % "h = Conv(x, v) r = Relu(h) y = Conv(r, w)",
        {"v": FILTERS, "w": FILTERS},
        UINT8,
        "QLinearConv",
    ),
    # Without a zero point, codes below zero are not what a Relu cuts off.
    "conv, relu, symmetric": (
        IMAGES % "h = Conv(x, v) r = Relu(h) y = Conv(r, w)",
        {"v": FILTERS, "w": FILTERS},
        INT8,
        (),
    ),
    "conv, dynamic": (IMAGES % "h = Conv(x, v) y = Conv(h, w)", {"v": FILTERS, "w": FILTERS}, DYNAMIC, ()),
    "conv, clip": (
        IMAGES % "lo = Constant<value = float {0.0}>() hi = Constant<value = float {0.5}>() h = Conv(x, v, b) "
        "r = Clip(h, lo, hi) y = Conv(r, w)",
        {"v": FILTERS, "w": FILTERS, "b": (4,)},
        UINT8,
        "QLinearConv",
    ),
    "transposed": (
        "g (float[n,4,8,8] x) => (float[n,4,10,10] y) { y = ConvTranspose(x, w) }",
        {"w": FILTERS},
        UINT8,
        (),
    ),
}


@pytest.mark.parametrize("weight", ["{format: int8}", "{format: int8, granularity: tensor}"])
@pytest.mark.parametrize("name", CASES)
def test_integer_kernels_are_foretold(name: str, weight: str, tmp_path: Path) -> None:
    text, shapes, activation, kernels = CASES[name]
    rng = np.random.default_rng(0)
    original = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> {text}')
    for key, shape in shapes.items():
        original.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), key))
    shape = [each.dim_value or 20 for each in original.graph.input[0].type.tensor_type.shape.dim]
    x = rng.standard_normal(shape).astype(np.float32)
    chosen = parse_recipe(f"rules: [{{weight: {weight}, activation: {activation}}}]")
    made, _ = onnxq.quantize_proto(original, chosen, calibration=onnxq.Calibration({"x": x}))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimized = onnx.ModelProto.FromString((tmp_path / "optimized.onnx").read_bytes()).graph.node
    found = Counter(node.op_type for node in optimized if node.op_type in KERNELS)
    assert found == Counter((kernels,) if isinstance(kernels, str) else kernels)
    told = execution(from_proto(made))
    assert told.integer == found.total()
    assert told.dequantized == 0
    plain = onnxruntime.InferenceSession(original.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = plain.run(None, {"x": x})[0]
    assert np.linalg.norm(session.run(None, {"x": x})[0] - expected) < 0.05 * np.linalg.norm(expected)
