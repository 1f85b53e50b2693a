"""What an operator multiplies with a weight, as rows: H = X'X then gives the energy of its output, w'Hw = |y|^2."""

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxq.model.load import from_proto
from onnxq.model.sites import find_weights
from onnxq.passes.calibrate import reading_of
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Request
from onnxq.statistics.views import Axis, Patches

# Inputs, operator, and the shapes of x and of the weight. Output channel c of group g is w_c' H_g w_c summed over all.
CONVOLUTIONS = {
    "1-D": ("[n, c, s]", "Conv(x, w)", (2, 4, 9), (6, 4, 3)),
    "2-D": ("[n, c, s, t]", "Conv(x, w)", (2, 3, 9, 8), (4, 3, 3, 2)),
    "3-D": ("[n, c, s, t, u]", "Conv(x, w)", (2, 2, 5, 6, 4), (3, 2, 2, 3, 2)),
    "strides, pads, dilations": (
        "[n, c, s, t]",
        "Conv <strides = [2, 1], pads = [1, 0, 2, 3], dilations = [1, 2]> (x, w)",
        (3, 2, 9, 8),
        (4, 2, 3, 2),
    ),
    "same": ("[n, c, s, t]", 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)', (2, 2, 7, 8), (4, 2, 3, 3)),
    "groups": ("[n, c, s, t]", "Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)", (2, 6, 5, 5), (4, 3, 3, 3)),
    "depthwise": ("[n, c, s, t]", "Conv <group = 4> (x, w)", (2, 4, 5, 5), (4, 1, 3, 3)),
    "one by one": ("[n, c, s, t]", "Conv <strides = [2, 2]> (x, w)", (2, 5, 5, 5), (7, 5, 1, 1)),
}


def statistics_of(text, x, weight, opset=17):
    """(H [groups, K, K], the model's output, the view)."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> {text}')
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = from_proto(proto)
    (found,) = find_weights(model.ir)
    reading = reading_of(found, model.ir.graph)
    statistics = collect(model, [reading.request("hessian")], Calibration(x, batch=1))
    (y,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    h = statistics.get(reading.tensor, "hessian", reading.view)
    return h.reshape(-1, *h.shape[-2:]), y, found, reading


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_of_a_convolution(name, integers):
    dims, operator, shape, weight_shape = CONVOLUTIONS[name]
    x, weight = integers(*shape), integers(*weight_shape)
    h, y, _, reading = statistics_of(f"g (float{dims} x) => (float{dims} y) {{ y = {operator} }}", x, weight)
    filters = weight.reshape(len(h), -1, h.shape[-1]).astype(np.float64)
    energy = np.einsum("gck,gkl,gcl->gc", filters, h, filters).reshape(-1)
    assert isinstance(reading.view, Patches)
    assert np.array_equal(energy, (y.astype(np.float64) ** 2).sum((0, *range(2, y.ndim))))


@pytest.mark.parametrize(
    ("operator", "x_shape", "weight_shape", "axis"),
    [
        ("MatMul(x, w)", (3, 5, 6), (6, 4), -1),
        ("MatMul(w, x)", (3, 6, 5), (4, 6), -2),
        ("MatMul(w, x)", (2, 3, 6, 5), (4, 6), -2),
        ("Gemm(x, w)", (5, 6), (6, 4), -1),
        ("Gemm <transB = 1> (x, w)", (5, 6), (4, 6), -1),
        ("Gemm <transA = 1> (x, w)", (6, 5), (6, 4), -2),
        ("Gemm(w, x)", (6, 5), (4, 6), -2),
        ("Gemm <transA = 1> (w, x)", (6, 5), (6, 4), -2),
        ("Gemm <transB = 1> (w, x)", (5, 6), (4, 6), -1),
        ("com.microsoft.FusedMatMul <transA = 1> (x, w)", (3, 6, 5), (6, 4), -2),
    ],
)
def test_rows_of_a_product(operator, x_shape, weight_shape, axis, integers):
    dims = ", ".join(f"d{number}" for number in range(len(x_shape)))
    x, weight = integers(*x_shape), integers(*weight_shape)
    # A Gemm takes two dimensions, all at once.
    text = f"g (float[{dims}] x) => (float[{dims}] y) {{ y = {operator} }}"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> {text}')
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = from_proto(proto)
    (found,) = find_weights(model.ir)
    reading = reading_of(found, model.ir.graph)
    assert reading.view == Axis(axis)
    statistics = collect(model, [reading.request("hessian")], Calibration([{"x": x}]))
    (y,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})
    matrix = found.read().astype(np.float64)
    matrix = matrix if found.layout.reduction == 0 else matrix.T
    h = statistics.get("x", "hessian", reading.view)
    assert np.trace(matrix.T @ h @ matrix) == (y.astype(np.float64) ** 2).sum()
    assert statistics.rows("x", reading.view) == x.size / 6


def test_input_of_a_transposed_convolution(integers):
    x = integers(2, 4, 5, 5)
    text = "g (float[n, c, s, t] x) => (float[n, d, s, t] y) { y = ConvTranspose(x, w) }"
    h, _, _, reading = statistics_of(text, x, integers(4, 3, 1, 1))
    rows = x.transpose(0, 2, 3, 1).reshape(-1, 4).astype(np.float64)
    assert np.array_equal(h[0], rows.T @ rows)
    assert reading.view == Axis(1)


def test_channels_of_an_image(model, integers):
    x = integers(3, 4, 5, 2)
    asked = Request("x", 4, ("channel_max", "channel_sum", "max"), Axis(1))
    found = collect(model("g (float[n, c, s, t] x) => (float[n, c, s, t] y) { y = Neg(x) }"), [asked], Calibration(x))
    assert np.array_equal(found.get("x", "channel_max", Axis(1)), x.max((0, 2, 3)))
    assert np.array_equal(found.channel_mean("x", Axis(1)), x.astype(np.float64).sum((0, 2, 3)) / 30)
    assert found.get("x", "max", Axis(1)) == x.max()


def test_no_reading_of_what_is_not_in_the_main_graph(model, integers):
    text = """g (float[n, 4] x) => (float[n, 4] z) {
        c = Constant <value = bool {1}> ()
        z = If (c) <then_branch = t () => (float[n, 4] a) { q = Neg(x) a = MatMul(q, w) },
                    else_branch = e () => (float[n, 4] b) { b = Neg(x) }> }"""
    loaded = model(text, w=integers(4, 4))
    (weight,) = find_weights(loaded.ir)
    assert reading_of(weight, loaded.ir.graph) is None
