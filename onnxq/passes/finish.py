"""The last passes: one node for a product with a quantized weight, the functions that the nodes call, the versions."""

import onnx_ir as ir

from onnxq.functions import DOMAIN, VERSION, functions
from onnxq.model.operators import MICROSOFT, is_op, is_set
from onnxq.model.opset import opset_of, raise_to
from onnxq.model.scopes import nodes, scopes
from onnxq.passes.edit import Editor, describe
from onnxq.passes.target import FUNCTION_IR_VERSION


def fuse_products(model: ir.Model) -> int:
    """Make a product with `onnxq.Dequantize<F>(...)` one node, where the weight is a matrix.

    `MatMul`, and `Gemm` that only multiplies, become `onnxq.MatMul<F>`; with a bias of one number a column, `Gemm` or
    the `Add` behind a `MatMul`, they become `onnxq.Linear<F>`.

    Returns:
        How many were fused.
    """
    editor, fused = Editor(model), 0
    for node in list(nodes(model)):
        weight = _weight(node)
        maker = None if weight is None else weight.producer()
        if weight is None or maker is None or not _is_matrix(maker) or len(weight.uses()) != 1:
            continue
        attributes: dict[str, int | list[int]] = {
            "shape": list(maker.attributes["shape"].as_ints()),
            "block_size": maker.attributes["block_size"].as_int(),
            "dtype": maker.attributes["dtype"].as_int(),
        }
        place, bias = with_bias(node, maker.attributes["shape"].as_ints()[1])
        if node.op_type == "Gemm" and bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
            continue
        family = "MatMul" if bias is None else "Linear"
        inputs = [node.inputs[0], *maker.inputs, *([] if bias is None else [bias])]
        describe(place, maker.doc_string or "")
        editor.replace(place, (DOMAIN, maker.op_type.replace("Dequantize", family, 1)), inputs, attributes)
        # People know a weight by the product that reads it, not by the addition behind.
        place.name = node.name
        fused += 1
    return fused


def _weight(node: ir.Node) -> ir.Value | None:
    """The right operand of a plain product."""
    if not is_op(node, "MatMul", "Gemm"):
        return None
    if node.op_type == "Gemm" and not _only_multiplies(node):
        return None
    return node.inputs[1]


def _only_multiplies(gemm: ir.Node) -> bool:
    """Whether a `Gemm` neither scales nor transposes; where a function's caller decides, it may."""
    factors = [gemm.attributes[name] for name in ("alpha", "beta") if name in gemm.attributes]
    plain = all(not each.is_ref() and each.as_float() == 1 for each in factors)
    return plain and all(is_set(gemm, name) is False for name in ("transA", "transB"))


def _is_matrix(maker: ir.Node) -> bool:
    """Whether it makes a [K, N] weight with blocks along K."""
    if maker.domain != DOMAIN or not maker.op_type.startswith("Dequantize"):
        return False
    return len(maker.attributes["shape"].as_ints()) == 2 and maker.attributes["axis"].as_int() == 0


def with_bias(node: ir.Node, columns: int) -> tuple[ir.Node, ir.Value | None]:
    """The last node of a product, and what it adds to each column."""
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        return node, bias if _has_shape(bias, columns) else None
    result = node.outputs[0]
    users = [use.node for use in result.uses()]
    if len(users) == 1 and is_op(users[0], "Add") and not result.is_graph_output() and users[0].graph is node.graph:
        for value in users[0].inputs:
            if value is not result and _has_shape(value, columns):
                return users[0], value
    return node, None


def _has_shape(value: ir.Value | None, columns: int) -> bool:
    return value is not None and value.shape is not None and list(value.shape) == [columns]


def finish(model: ir.Model, opset: int, ir_version: int) -> None:
    """Raise the versions, and add the functions of all onnxq operators in the model."""
    raise_to(model, opset, ir_version)
    called: set[str] = set()
    for scope in scopes(model):
        here = list(ir.traversal.RecursiveGraphIterator(scope))
        own = {node.op_type for node in here if node.domain == DOMAIN}
        if own:
            scope.opset_imports[DOMAIN] = VERSION
        if any(node.domain == MICROSOFT for node in here):
            scope.opset_imports.setdefault(MICROSOFT, 1)
        called |= own
    if called:
        model.graph.opset_imports[DOMAIN] = VERSION
        # A weight can end under a function where the plan saw a DequantizeLinear (int8 scales that are not exact).
        model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
    # Before the functions that call them, as onnx.reference wants it. Those of onnxq that came with the model may be of
    # another opset.
    theirs = {identifier: each for identifier, each in model.functions.items() if each.domain != DOMAIN}
    model.functions.clear()
    model.functions.update({each.identifier(): each for each in functions(called, opset_of(model))} | theirs)
