"""Formats and bits of each weight are told from the file alone."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.analysis.stored import find_stored, is_part
from onnxq.api import quantize_proto
from onnxq.model.load import from_proto
from onnxq.model.sites import find_weights
from onnxq.recipes import load_recipe, parse_recipe

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
model (float[b, 64] x, float[b, 8, 8, 8] image) => (float[b, 32] y, float[b, 4, 6, 6] z) {
  h = MatMul(x, up)
  y = MatMul(h, down)
  z = Conv(image, conv)
}
"""
ROUNDED = ("fp4", "fp6", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "nvfp4")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    made = parser.parse_model(TEXT)
    for name, shape in {"up": (64, 64), "down": (64, 32), "conv": (4, 8, 3, 3)}.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return made


@pytest.mark.parametrize("target", ["ort", "ort-int8", "standard", "native"])
@pytest.mark.parametrize("recipe", ROUNDED)
def test_what_onnxq_wrote_is_found_again(model, recipe, target):
    made, report = quantize_proto(model, recipe, target=target)
    loaded = from_proto(made).ir
    stored = {each.name.removesuffix("_quantized"): each for each in find_stored(loaded)}
    assert stored.keys() == {each.weight for each in report.quantized}
    spec = load_recipe(recipe).rules[0].weight
    assert spec is not None
    for entry in report.quantized:
        found = stored[entry.weight]
        as_int8 = target == "ort-int8" and entry.format in ("fp6_e2m3", "fp4_e2m1")
        assert found.format == ("int8" if as_int8 and found.format == "int8" else entry.format)
        assert found.symmetric == spec.symmetric
        if not as_int8:
            granularity = {"tensor": "per tensor", "channel": "per channel", "group": f"groups of {spec.group_size}"}
            assert found.granularity == granularity[spec.granularity]
            assert found.scale == ("fp32" if spec.scale == "auto" else spec.scale)
        assert np.prod(found.shape) == np.prod(entry.shape)
        # A weight that was stored as a matrix has its shape beside it.
        shape_bytes = (
            8 * len(entry.shape) if found.shape != entry.shape and found.op != "com.microsoft::MatMulNBits" else 0
        )
        assert found.size_bytes + shape_bytes == entry.result_bytes
    assert [each.name for each in find_weights(loaded) if not is_part(each.source)] == []


@pytest.mark.parametrize("target", ["ort", "ort-cuda"])
def test_of_a_table_that_is_looked_up_rows_have_scales(target):
    text = '<ir_version: 10, opset_import: ["": 21]> model (int64[n] i) => (float[n, 128] y) { y = Gather(t, i) }'
    made = parser.parse_model(text)
    table = np.random.default_rng(0).normal(size=(96, 128)).astype(np.float32)
    made.graph.initializer.append(numpy_helper.from_array(table, "t"))
    for spec, granularity in (("", "per channel"), (", granularity: group, group_size: 32", "groups of 32")):
        recipe = parse_recipe(f"rules: [{{match: {{role: embedding}}, weight: {{format: fp4_e2m1{spec}}}}}]")
        quantized, report = quantize_proto(made, recipe, target=target)
        (found,) = find_stored(from_proto(quantized).ir)
        assert found.granularity == granularity
        assert sorted(found.shape) == [96, 128]
        assert found.size_bytes == report.quantized[0].result_bytes


def test_scales_for_all_are_per_tensor_and_half_scales_are_named():
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    model (float16[b, 4] x) => (float16[b, 8] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }
    """
    made = parser.parse_model(text)
    codes, scale = np.arange(32, dtype=np.int8).reshape(4, 8), np.array(0.5, np.float16)
    made.graph.initializer.extend([numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scale, "s")])
    (found,) = find_stored(from_proto(made).ir)
    assert (found.format, found.granularity, found.scale, found.shape) == ("int8", "per tensor", "fp16", (4, 8))
    assert found.size_bytes == 34
    assert found.bits_each == 8.5


def test_quantized_activations_are_no_weights():
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    model (float[b, 4] x) => (float[b, 4] y) <float s = {0.5}, int8 z = {0}> {
      q = QuantizeLinear(x, s, z)
      y = DequantizeLinear(q, s, z)
    }
    """
    assert find_stored(from_proto(parser.parse_model(text)).ir) == []


def test_operators_of_a_later_version_are_passed_over():
    text = """
    <ir_version: 10, opset_import: ["": 21, "onnxq": 2]>
    model (float[b, 4] x) => (float[b, 4] y) <uint8[8] w = {1, 2, 3, 4, 5, 6, 7, 8}, float[1, 4] s = {1, 1, 1, 1}> {
      y = onnxq.MatMulFP9E9M9 <shape = [4, 4], block_size = 4, dtype = 1> (x, w, s)
    }
    """
    assert find_stored(from_proto(parser.parse_model(text)).ir) == []
