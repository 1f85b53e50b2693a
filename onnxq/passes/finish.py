"""The last passes: one node for a product with a quantized weight, the functions that the nodes call, the versions."""

import onnx_ir as ir

from onnxq.functions import DOMAIN, VERSION, functions
from onnxq.model.operators import MICROSOFT, is_op, is_set
from onnxq.model.opset import opset_of, raise_to
from onnxq.model.products import is_unscaled, with_bias
from onnxq.model.scopes import nodes, scopes
from onnxq.passes.edit import Attributes, Editor, describe
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
        attributes: Attributes = {
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
    if not is_op(node, "MatMul", "Gemm") or not is_unscaled(node):
        return None
    return node.inputs[1] if all(is_set(node, name) is False for name in ("transA", "transB")) else None


def _is_matrix(maker: ir.Node) -> bool:
    """Whether it makes a [K, N] weight with blocks along K."""
    if maker.domain != DOMAIN or not maker.op_type.startswith("Dequantize"):
        return False
    return len(maker.attributes["shape"].as_ints()) == 2 and maker.attributes["axis"].as_int() == 0


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
