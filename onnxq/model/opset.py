"""Raise the opset of a model without changing what it computes, its names or the order of its nodes."""

import onnx_ir as ir
from onnx import defs

from onnxq.model.operators import domain_of
from onnxq.model.scopes import nodes, scopes

# Changes of meaning that two schemas do not show: the first version with the new meaning.
_CHANGED_MEANING = {"GroupNormalization": 21, "RoiAlign": 16, "Upsample": 10}
_FLOOR = 13


def opset_of(model: ir.Model) -> int:
    """The version of the standard operators that the main graph imports; 0 where it imports none."""
    return model.graph.opset_imports.get("", model.graph.opset_imports.get("ai.onnx", 0))


def obstacle_to(model: ir.Model, opset: int) -> str | None:
    """Why the model cannot be raised to `opset`, or None where it can (or is there already)."""
    here = opset_of(model)
    if here >= opset:
        return None
    if 0 < here < _FLOOR:
        return f"needs opset {opset}, the model has {here}: raise it to {_FLOOR} or more with onnx.version_converter"
    for node in nodes(model):
        if domain_of(node) == "" and (why := _obstacle(node, here, opset)):
            return f"needs opset {opset}, and {node.op_type} '{node.name}' {why}"
    return None


def raise_to(model: ir.Model, opset: int, ir_version: int) -> None:
    """Raise opset and IR version where they are lower; `obstacle_to` must have returned None."""
    here = opset_of(model)
    model.ir_version = max(model.ir_version, ir_version)
    if here >= opset:
        return
    for node in nodes(model):
        if domain_of(node) == "":
            _adapt(node, here, opset)
    for scope in scopes(model):
        if "ai.onnx" in scope.opset_imports:
            scope.opset_imports["ai.onnx"] = opset
        else:
            scope.opset_imports[""] = opset


def _obstacle(node: ir.Node, here: int, there: int) -> str | None:
    """Why a node means something else, or nothing, at the higher opset."""
    if not defs.has(node.op_type):
        return None
    old, new = defs.get_schema(node.op_type, here), defs.get_schema(node.op_type, there)
    if old.since_version == new.since_version or _adapts(node, old.since_version, new.since_version):
        return None
    if new.deprecated or old.since_version < _CHANGED_MEANING.get(node.op_type, 0) <= new.since_version:
        return f"changed its meaning since opset {here}"
    for name in node.attributes:
        if name not in new.attributes:
            return f"lost its attribute '{name}' since opset {here}"
    for name, attribute in old.attributes.items():
        if name not in node.attributes and attribute.default_value != new.attributes[name].default_value:
            return f"changed the default of '{name}' since opset {here}"
    if len(node.inputs) < new.min_input or len(node.outputs) > new.max_output:
        return f"changed its inputs or outputs since opset {here}"
    return None


def _adapts(node: ir.Node, old: int, new: int) -> bool:
    """Whether `_adapt` rewrites the node."""
    reduces = node.op_type.startswith("Reduce") and old < 18 <= new and "axes" in node.attributes
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
