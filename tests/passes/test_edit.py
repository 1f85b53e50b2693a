"""Small edits of a graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from onnxq.passes.edit import Editor, drop_unused
from onnxq.passes.sink import Memory

TEXT = """<ir_version: 10, opset_import: ["": 21, "local": 1]>
g (float[2,2] x, bool c) => (float[2,2] y) <float[2,2] w = {1,2,3,4}, float[2,2] v = {1,2,3,4}> {
  [t] u = Transpose(w) [m] p = MatMul(x, u) [if] q = If(c) <
    then_branch = then () => (a) <float[2,2] inner = {1,2,3,4}> { [i] a = MatMul(p, inner) },
    else_branch = else () => (b) { [e] b = Identity(p) }>
  [f] y = local.F(q) }
<domain: "local", opset_import: ["": 21]> F (z) => (r)
{ [k] k = Constant<value=float[2,2] {1,2,3,4}>() [o] r = MatMul(z, k) }
"""


@pytest.fixture
def model() -> ir.Model:
    return ir.from_proto(parser.parse_model(TEXT))


def node(model: ir.Model, name: str) -> ir.Node:
    scopes = [model.graph, *model.functions.values()]
    return next(each for scope in scopes for each in ir.traversal.RecursiveGraphIterator(scope) if each.name == name)


def tensor(name: str) -> ir.TensorProtocol:
    return Memory().append(name, ir.DataType.FLOAT, [2], [np.zeros(2, np.float32)])


@pytest.mark.parametrize("name", ["x", "w", "u", "t", "y", "inner", "a", "i", "k", "z", "r", "o"])
def test_no_name_is_given_twice(name: str, model: ir.Model) -> None:
    editor = Editor(model)
    assert editor.fresh(name) == f"{name}_1"
    assert editor.fresh(name) == f"{name}_2"
    assert editor.fresh(f"new {name}") == f"new {name}"


def test_constant_stands_beside_its_owner(model: ir.Model) -> None:
    editor = Editor(model)
    editor.constant(tensor("c1"), model.graph.initializers["w"])
    assert "c1" in model.graph.initializers
    inner = node(model, "i").inputs[1]
    assert inner is not None
    editor.constant(tensor("c2"), inner)
    assert "c2" in node(model, "i").graph.initializers  # type: ignore[union-attr]
    made = editor.constant(tensor("c3"), node(model, "k").outputs[0])
    function = next(iter(model.functions.values()))
    assert [each.op_type for each in function] == ["Constant", "Constant", "MatMul"]
    assert made.producer() is next(iter(function))
    written = ir.to_proto(model)
    assert [each.output[0] for each in written.functions[0].node] == ["c3", "k", "r"]


def test_new_node_stands_right_before_its_reader(model: ir.Model) -> None:
    editor, reader = Editor(model), node(model, "m")
    value = ir.Value(name="u", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 2]))
    made = editor.before(reader, ("", "Neg"), [reader.inputs[1]], {}, value)
    reader.replace_input_with(1, made)
    assert [each.op_type for each in model.graph] == ["Transpose", "Neg", "MatMul", "If", "F"]
    assert made.name == "u_1"
    assert made.dtype == ir.DataType.FLOAT
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_replaced_operator_keeps_name_place_and_result(model: ir.Model) -> None:
    editor, reader = Editor(model), node(model, "m")
    reader.metadata_props["namespace"] = "layer"
    editor.replace(reader, ("", "Gemm"), [reader.inputs[0], model.graph.initializers["v"]], {"transB": 1})
    written = ir.to_proto(model)
    (gemm,) = (each for each in written.graph.node if each.op_type == "Gemm")
    assert (gemm.name, list(gemm.output), list(gemm.input)) == ("m", ["p"], ["x", "v"])
    assert gemm.metadata_props[0].value == "layer"
    assert [each.name for each in written.graph.initializer] == ["v"]
    assert [each.name for each in written.graph.node] == ["m", "if", "f"]


def test_only_what_nobody_reads_is_dropped(model: ir.Model) -> None:
    drop_unused(model.graph.initializers["w"])
    drop_unused(node(model, "t").outputs[0])
    drop_unused(node(model, "f").outputs[0])
    drop_unused(model.graph.inputs[0])
    assert len(ir.to_proto(model).graph.node) == 4
    assert list(model.graph.initializers) == ["w", "v"]
    node(model, "m").replace_input_with(1, model.graph.initializers["v"])
    drop_unused(node(model, "t").outputs[0])
    assert [each.op_type for each in model.graph] == ["MatMul", "If", "F"]
    assert list(model.graph.initializers) == ["v"]


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT2, ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT4E2M1])
def test_memory_keeps_packed_bytes(dtype: ir.DataType) -> None:
    raw = np.arange(12, dtype=np.uint8)
    count = 12 * 8 // dtype.bitwidth
    stored = Memory().append("w", dtype, [count // 4, 4], [raw[:5], raw[5:].tobytes()])
    assert stored.dtype == dtype
    assert stored.tobytes() == raw.tobytes()
    assert ir.to_proto(stored).raw_data == raw.tobytes()
