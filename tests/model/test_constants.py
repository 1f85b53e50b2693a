"""Chains of nodes over a constant: what they do to it, without reading it."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from onnxq.model.constants import (
    apply_views,
    constant_ints,
    constant_tensor,
    trace,
    view_dtype,
    view_shape,
    views,
)

HEADER = '<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[] y) <'

CHAINS = {
    "nothing": "",
    "identity": "y = Identity(w)",
    "transpose": "y = Transpose(w)",
    "transpose perm": "y = Transpose<perm=[1,2,0]>(w)",
    "reshape": "s = Constant<value=int64[2]{4,6}>() y = Reshape(w, s)",
    "reshape ints": "s = Constant<value_ints=[6,4]>() y = Reshape(w, s)",
    "reshape one int": "s = Constant<value_ints=[-1]>() y = Reshape(w, s)",
    "reshape infers": "s = Constant<value_ints=[3,-1,2]>() y = Reshape(w, s)",
    "reshape keeps": "s = Constant<value_ints=[0,0,4,1]>() y = Reshape(w, s)",
    "reshape keeps and infers": "s = Constant<value_ints=[0,-1]>() y = Reshape(w, s)",
    "unsqueeze": "a = Constant<value_ints=[0,2]>() y = Unsqueeze(w, a)",
    "unsqueeze from the end": "a = Constant<value_ints=[-1,1]>() y = Unsqueeze(w, a)",
    "squeeze": "a = Constant<value_ints=[0]>() b = Unsqueeze(w, a) y = Squeeze(b, a)",
    "squeeze from the end": "a = Constant<value_ints=[-1]>() b = Unsqueeze(w, a) y = Squeeze(b, a)",
    "cast": "y = Cast<to=10>(w)",
    "cast there and back": "a = Cast<to=10>(w) y = Cast<to=1>(a)",
    "long": "a = Transpose(w) s = Constant<value_ints=[2,12]>() b = Reshape(a, s) c = Identity(b) y = Transpose(c)",
}


def parse(nodes: str, extra: str = "") -> tuple[ir.Value, ir.Model]:
    numbers = ", ".join(str(each / 7) for each in range(24))
    proto = parser.parse_model(HEADER + f"float[2,3,4] w = {{{numbers}}}{extra}> {{ {nodes or 'y = Relu(w)'} }}")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = ir.from_proto(proto)
    return (model.graph.outputs[0] if nodes else model.graph.initializers["w"]), model


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_what_onnx_computes(name: str) -> None:
    value, model = parse(CHAINS[name])
    source, chain = trace(value)
    assert source.name == "w"
    tensor = constant_tensor(source)
    assert tensor is not None
    steps = views(tensor, chain)
    assert steps is not None
    proto = ir.to_proto(model)
    computed = ReferenceEvaluator(proto).run(None, {"x": np.zeros(2, np.float32)})[0] if chain else tensor.numpy()
    result = apply_views(tensor.numpy(), steps)
    np.testing.assert_array_equal(result, computed)
    assert result.dtype == computed.dtype
    assert view_shape(tensor.shape.numpy(), steps) == computed.shape
    assert view_dtype(tensor.dtype, steps).numpy() == computed.dtype


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Shape(x) y = Reshape(w, s)",
        "s = Constant<value_ints=[0,6,4]>() y = Reshape<allowzero=1>(w, s)",
        "s = Constant<value_ints=[5,5]>() y = Reshape(w, s)",
        "s = Constant<value_ints=[-1,0]>() a = Constant<value_ints=[24]>() b = Reshape(w, a) y = Reshape(b, s)",
        "y = Squeeze(w)",
        "y = Cast<to=7>(w)",
        "y = Cast<to=11>(w)",
    ],
)
def test_chain_that_is_not_constant(nodes: str) -> None:
    value, _ = parse(nodes)
    source, chain = trace(value)
    tensor = constant_tensor(source)
    assert source.name == "w"
    assert tensor is not None
    assert views(tensor, chain) is None


def test_trace_ends_at_what_computes() -> None:
    value, _ = parse("a = Relu(w) y = Transpose(a)")
    source, chain = trace(value)
    assert source.name == "a"
    assert [node.op_type for node in chain] == ["Transpose"]
    assert constant_tensor(source) is None
    assert constant_tensor(None) is None


def test_other_domains_compute() -> None:
    value, _ = parse("y = local.Transpose(w)")
    assert trace(value) == (value, ())


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Constant<value=int64[2]{4,-1}>()", (4, -1)),
        ("y = Constant<value=int32[1]{4}>()", (4,)),
        ("y = Constant<value_ints=[1,2]>()", (1, 2)),
        ("y = Constant<value=float[1]{4.0}>()", None),
        ("y = Constant<value_floats=[4.0]>()", None),
        ("y = Relu(x)", None),
    ],
)
def test_constant_ints(nodes: str, expected: tuple[int, ...] | None) -> None:
    value, _ = parse(nodes)
    assert constant_ints(value) == expected
    assert constant_ints(None) is None


def test_no_array_is_copied_where_the_view_allows() -> None:
    array = np.arange(24, dtype=ml_dtypes.bfloat16).reshape(2, 3, 4)
    turned = apply_views(array, (("Reshape", (6, 4)), ("Transpose", (1, 0))))
    assert np.shares_memory(turned, array)
