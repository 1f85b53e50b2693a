"""Raise the opset of a model without changing what it computes, its names or the order of its nodes."""

import onnx_ir as ir
from onnx import AttributeProto, defs

from onnxq.model.operators import domain_of
from onnxq.model.scopes import scopes

# Changes of meaning that two schemas do not show: the first version with the new meaning.
_CHANGED_MEANING = {"GridSample": 20, "GroupNormalization": 21, "RoiAlign": 16, "Upsample": 10}
_FLOOR = 13
# Of IR version 8, that of functions; statistics are quicker since this one (ScatterElements adds).
_UNUSED_OPSET = 16
INITIALIZER_IR_VERSION = 4
"""Since then an initializer need not be an input of its graph."""

_Scope = ir.Graph | ir.Function


def opset_of(model: ir.Model) -> int:
    """The version of the standard operators that the main graph imports; 0 where it imports none."""
    return _imported(model.graph)


def import_standard(model: ir.Model) -> None:
    """Let a model import the standard operators where it does not: it has none, so any version means the same.

    Whatever adds nodes to its graph, a statistic or a quantized weight, adds standard ones.
    """
    if opset_of(model) == 0:
        model.graph.opset_imports[""] = _UNUSED_OPSET


def obstacle_to(model: ir.Model, opset: int) -> str | None:
    """Why the model cannot be raised to `opset`, or None where it can (or is there already)."""
    for scope in scopes(model):
        here = _imported(scope)
        if here >= opset:
            continue
        if 0 < here < _FLOOR:
            place = f"function '{scope.name}'" if isinstance(scope, ir.Function) else "the model"
            return f"needs opset {opset}, {place} has {here}: raise it to {_FLOOR} or more with onnx.version_converter"
        for node in ir.traversal.RecursiveGraphIterator(scope):
            if domain_of(node) == "" and (why := _obstacle(node, here, opset)):
                return f"needs opset {opset}, and {node.op_type} '{node.name}' {why}"
    return None


def raise_to(model: ir.Model, opset: int, ir_version: int) -> None:
    """Raise opset and IR version where they are lower; `obstacle_to` must have returned None.

    Functions have an opset of their own: each is raised from where it is, those that import none are left alone.
    """
    model.ir_version = max(model.ir_version, ir_version)
    for scope in scopes(model):
        here = _imported(scope)
        if here >= opset or (here == 0 and isinstance(scope, ir.Function)):
            continue
        for node in list(ir.traversal.RecursiveGraphIterator(scope)):
            if domain_of(node) == "":
                _adapt(node, here, opset)
        scope.opset_imports["ai.onnx" if "ai.onnx" in scope.opset_imports else ""] = opset


def _imported(scope: _Scope) -> int:
    return scope.opset_imports.get("", scope.opset_imports.get("ai.onnx", 0))


def _obstacle(node: ir.Node, here: int, there: int) -> str | None:
    """Why a node means something else, or nothing, at the higher opset."""
    if not defs.has(node.op_type):
        return None
    try:
        old, new = defs.get_schema(node.op_type, here), defs.get_schema(node.op_type, there)
    except defs.SchemaError:
        return f"is not defined at opset {here}"
    if old.since_version == new.since_version or _adapts(node, old.since_version, new.since_version):
        return None
    if new.deprecated or old.since_version < _CHANGED_MEANING.get(node.op_type, 0) <= new.since_version:
        return f"changed its meaning since opset {here}"
    for name in node.attributes:
        if name not in new.attributes:
            return f"lost its attribute '{name}' since opset {here}"
    for name, attribute in old.attributes.items():
        if name not in node.attributes and _default(new, name) != attribute.default_value:
            return f"changed the default of '{name}' since opset {here}"
    # A BatchNormalization below opset 14 trains where it has more outputs than one.
    outputs = 1 if node.op_type == "BatchNormalization" and old.since_version < 14 else new.max_output
    if len(node.inputs) < new.min_input or len(node.outputs) > outputs:
        return f"changed its inputs or outputs since opset {here}"
    return None


def _default(schema: defs.OpSchema, name: str) -> object:
    """What an attribute is where a node does not have it; empty also where the schema has none of that name."""
    return schema.attributes[name].default_value if name in schema.attributes else AttributeProto()


def _adapts(node: ir.Node, old: int, new: int) -> bool:
    """Whether `_adapt` rewrites the node."""
    axes = node.attributes.get("axes")
    reduces = node.op_type.startswith("Reduce") and old < 18 <= new and axes is not None and not axes.is_ref()
    return reduces or (node.op_type == "Split" and old < 18 <= new)


def _adapt(node: ir.Node, here: int, there: int) -> None:
    """Rewrite what opset 18 moved: axes of reductions became an input, Split names the number of its outputs."""
    if not (here < 18 <= there):
        return
    if node.op_type == "Split" and len([each for each in node.inputs if each is not None]) == 1:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))
    elif node.op_type.startswith("Reduce") and "axes" in node.attributes:
        axes = ir.tensor(list(node.attributes.pop("axes").as_ints()), ir.DataType.INT64)
        constant = ir.node("Constant", [], {"value": axes})
        node.prepend(constant)
        node.resize_inputs(2)
        node.replace_input_with(1, constant.outputs[0])
