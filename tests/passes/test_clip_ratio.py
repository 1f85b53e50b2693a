"""`clip_ratio` of an activation: both ends of each token's range move towards zero, and all within is rounded finer."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.errors import RecipeError
from onnxq.formats import get_format
from onnxq.methods.ranges import round_to, scale_of
from onnxq.recipes import parse_recipe

X = (np.random.default_rng(1).standard_normal((50, 32)) + 0.5).astype(np.float32)


def converted(activation: str, target: str = "ort") -> tuple[onnx.ModelProto, onnxq.Report]:
    text = '<ir_version: 10, opset_import: ["": 21]> g (float[n, 32] x) => (float[n, 32] y) { y = MatMul(x, w) }'
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(32, dtype=np.float32), "w"))
    return onnxq.quantize_proto(model, parse_recipe(f"rules:\n- activation: {{{activation}}}"), target=target)


@pytest.mark.parametrize("ratio", [0.5, 0.9])
@pytest.mark.parametrize(
    ("name", "symmetric"), [("int4", True), ("uint4", False), ("fp4_e2m1", True), ("fp6_e3m2", True)]
)
def test_tokens_are_clipped(name, symmetric, ratio):
    text = f"format: {name}, granularity: token, symmetric: {str(symmetric).lower()}, clip_ratio: {ratio}"
    made, report = converted(text)
    found = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": X})[0]
    kind = get_format(name)
    low, high = (bound(X.astype(np.float64), axis=1, keepdims=True) for bound in (np.min, np.max))
    scale, zero_point = scale_of(low, high, kind, symmetric=symmetric)
    expected = round_to(X.astype(np.float64), (scale * ratio).astype(np.float32), zero_point, kind)
    # A tie may fall to the other side in float32.
    assert np.isclose(found, expected, atol=1e-5).mean() > 0.995
    assert np.abs(found).max() < np.abs(X).max() * (ratio + 0.07)
    assert f"clipped at {ratio}" in str(report.activations[0].spec)
    # The scale is a part of the rounding, with the factor in between too.
    assert [note for note in report.notes if "onnxq" in note] == []
    assert "1 activation rounded by a function in every run" in report.notes


@pytest.mark.parametrize("activation", ["format: int4", "format: uint4, symmetric: false"])
def test_the_standard_form_is_a_pair(activation):
    made, _ = converted(f"{activation}, granularity: token, clip_ratio: 0.9", "standard")
    kinds = [node.op_type for node in made.graph.node]
    assert "Mul" in kinds
    assert kinds[-3:] == ["QuantizeLinear", "DequantizeLinear", "MatMul"]


def test_a_ratio_of_one_changes_nothing():
    plain, clipped = (converted(f"format: int4, granularity: token{more}")[0] for more in ("", ", clip_ratio: 1.0"))
    assert [node.op_type for node in plain.graph.node] == [node.op_type for node in clipped.graph.node]


def test_static_scales_have_ranges_instead():
    with pytest.raises(RecipeError, match="clip_ratio goes with granularity: token"):
        parse_recipe("rules:\n- activation: {format: int8, clip_ratio: 0.9}")
    with pytest.raises(RecipeError, match="clip_ratio"):
        parse_recipe("rules:\n- activation: {format: int4, granularity: token, clip_ratio: 0}")
