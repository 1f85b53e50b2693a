"""The last passes: one node for a product with a quantized weight, the functions that the nodes call, the versions."""

import onnx_ir as ir

from onnxq.functions import DOMAIN, VERSION, functions
from onnxq.model.operators import domain_of
from onnxq.model.opset import opset_of, raise_to
from onnxq.model.scopes import nodes, scopes
from onnxq.passes.edit import Editor, describe
from onnxq.passes.target import FUNCTION_IR_VERSION


def fuse_products(model: ir.Model) -> int:
    """Make `MatMul(x, onnxq.Dequantize<F>(...))` one node `onnxq.MatMul<F>`, where the weight is a matrix.

    Returns:
        How many were fused.
    """
    editor, fused = Editor(model), 0
    for node in nodes(model):
        if domain_of(node) != "" or node.op_type != "MatMul" or (weight := node.inputs[1]) is None:
            continue
        maker = weight.producer()
        if maker is None or maker.domain != DOMAIN or not maker.op_type.startswith("Dequantize"):
            continue
        shape, axis = list(maker.attributes["shape"].as_ints()), maker.attributes["axis"].as_int()
        if len(shape) != 2 or axis != 0 or len(weight.uses()) != 1:
            continue
        attributes: dict[str, int | list[int]] = {
            "shape": shape,
            "block_size": maker.attributes["block_size"].as_int(),
            "dtype": maker.attributes["dtype"].as_int(),
        }
        name = maker.op_type.replace("Dequantize", "MatMul", 1)
        describe(node, maker.doc_string or "")
        editor.replace(node, (DOMAIN, name), [node.inputs[0], *maker.inputs], attributes)
        fused += 1
    return fused


def finish(model: ir.Model, opset: int, ir_version: int) -> None:
    """Raise the versions, and add the functions of all onnxq operators in the model."""
    raise_to(model, opset, ir_version)
    called: set[str] = set()
    for scope in scopes(model):
        here = list(ir.traversal.RecursiveGraphIterator(scope))
        own = {node.op_type for node in here if node.domain == DOMAIN}
        if own:
            scope.opset_imports[DOMAIN] = VERSION
        if any(node.domain == "com.microsoft" for node in here):
            scope.opset_imports.setdefault("com.microsoft", 1)
        called |= own
    if called:
        model.graph.opset_imports[DOMAIN] = VERSION
        # A weight can end under a function where the plan saw a DequantizeLinear (int8 scales that are not exact).
        model.ir_version = max(model.ir_version, FUNCTION_IR_VERSION)
    # Before the functions that call them, as onnx.reference wants it.
    theirs = dict(model.functions)
    model.functions.clear()
    model.functions.update({each.identifier(): each for each in functions(called, opset_of(model))} | theirs)
