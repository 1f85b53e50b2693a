"""The operators of a quantized cache, told by the formats themselves."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onnxq.formats import get_format, pack
from onnxq.functions import DOMAIN, VERSION, functions, operator_suffix

FORMATS = ("int8", "int4", "int2", "fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1")
SHAPE = (2, 3, 5, 16)


def run(nodes, feed, outputs, opset):
    """Run nodes of the domain onnxq on float32 [batch, heads, tokens, size]."""
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
    inputs = [
        helper.make_tensor_value_info(name, types.get(array.dtype, TensorProto.UINT8), [None] * 4)
        for name, array in feed.items()
    ]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(name, kind, [None] * 4) for name, kind in outputs]
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets)
    model.functions.extend(ir.to_proto(each) for each in functions({node.op_type for node in nodes}, opset))
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run([name for name, _ in outputs], feed)


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(SHAPE) * np.exp(3 * rng.standard_normal(SHAPE))
    wide[0, 0, 0, :3] = (0, 1, 2.5)
    return wide.astype(np.float32)


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_rounded_and_packed_as_the_format_does(name, opset, x):
    kind = get_format(name)
    suffix, top = operator_suffix(kind), np.nanmax(kind.values)
    nodes = [
        helper.make_node(f"CacheScale{suffix}", ["x"], ["scale"], domain=DOMAIN),
        helper.make_node(f"CacheQuantize{suffix}", ["x", "scale"], ["packed"], domain=DOMAIN),
        helper.make_node(
            f"CacheDequantize{suffix}", ["packed", "scale"], ["y"], domain=DOMAIN, dtype=TensorProto.FLOAT
        ),
    ]
    outputs = [("scale", TensorProto.FLOAT16), ("packed", TensorProto.UINT8), ("y", TensorProto.FLOAT)]
    scale, packed, y = run(nodes, {"x": x}, outputs, opset)
    np.testing.assert_array_equal(
        scale, np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(top), np.float32(2**-14)).astype(np.float16)
    )
    units = np.clip(x / scale.astype(np.float32), np.nanmin(kind.values), top)
    codes, values = kind.quantize_finite(units)
    np.testing.assert_array_equal(packed.ravel(), pack(codes, kind.bits))
    assert packed.shape == (*SHAPE[:3], SHAPE[3] * kind.bits // 8)
    np.testing.assert_array_equal(y, values * scale.astype(np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_past_stays_empty(name):
    kind = get_format(name)
    node = helper.make_node(
        f"CacheDequantize{operator_suffix(kind)}", ["packed", "scale"], ["y"], domain=DOMAIN, dtype=TensorProto.FLOAT
    )
    feed = {
        "packed": np.zeros((2, 3, 0, 16 * kind.bits // 8), np.uint8),
        "scale": np.ones((1, 3, 1, 16), np.float32),
    }
    (y,) = run([node], feed, [("y", TensorProto.FLOAT)], 20)
    assert y.shape == (2, 3, 0, 16)


def test_scales_of_channels_broadcast(x):
    scale = np.abs(x).max(axis=(0, 2), keepdims=True) / 127
    nodes = [
        helper.make_node("CacheQuantizeINT8", ["x", "scale"], ["packed"], domain=DOMAIN),
        helper.make_node("CacheDequantizeINT8", ["packed", "scale"], ["y"], domain=DOMAIN, dtype=TensorProto.FLOAT16),
    ]
    (y,) = run(nodes, {"x": x, "scale": scale}, [("y", TensorProto.FLOAT16)], 20)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, np.rint(x / scale) * scale, rtol=2e-3)
