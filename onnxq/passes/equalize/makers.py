"""How the makers of a value scale its channels: what each operator asks of its inputs so that its output is scaled."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import constant_ints, constant_shape
from onnxq.model.operators import MICROSOFT, domain_of, operator_name
from onnxq.passes.equalize.labels import Labels, dims_of, padded, reshaped
from onnxq.passes.equalize.nodes import (
    PARTS,
    check_product,
    int_of,
    is_convolution,
    is_homogeneous,
    is_view,
    parts,
    perm_of,
)
from onnxq.passes.equalize.walk import Walk
from onnxq.passes.step import Refusal

# Inputs with one number a channel, which scale the output.
_NORMS = {
    ("", "LayerNormalization"): (1, 2),
    ("", "RMSNormalization"): (1,),
    ("", "SimplifiedLayerNormalization"): (1,),
    (MICROSOFT, "SkipLayerNormalization"): (2, 3),
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): (2,),
}
# Inputs of attention that hold values beside input 2: a packed bias, or values of earlier calls.
_ATTENTIONS = {
    ("", "Attention"): (5,),
    (MICROSOFT, "MultiHeadAttention"): (3, 7),
    (MICROSOFT, "GroupQueryAttention"): (4,),
}


def scale_output(walk: Walk, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    """Have an output of a node scaled.

    Raises:
        Refusal: The node cannot do that.
    """
    name = domain_of(node), node.op_type
    if node in walk.products:
        _product(walk, node, labels)
    elif name[0] == "" and node.op_type in PARTS:
        _part(walk, node, value, labels)
    elif value is not node.outputs[0]:
        raise Refusal(f"{operator_name(node)} takes no scales")
    elif name in _NORMS:
        _norm(walk, node, labels)
    elif name in _ATTENTIONS:
        _attention(walk, node, labels)
    elif is_homogeneous(node):
        walk.operand(node, 0, labels)
    elif is_view(node) and node.inputs[0] is not None:
        walk.operand(node, 0, reshaped(labels, dims_of(value), dims_of(node.inputs[0])))
    elif name[0] == "" and node.op_type in _PLAIN:
        _PLAIN[node.op_type](walk, node, labels)
    else:
        raise Refusal(f"{operator_name(node)} takes no scales")


def _product(walk: Walk, node: ir.Node, labels: Labels) -> None:
    """The columns of the weight, and the bias."""
    weight, site = walk.products[node]
    check_product(node, weight)
    activation = node.attributes.get("activation")
    if node.op_type in ("GemmFastGelu", "Attention") or (activation and activation.as_string() not in ("", "Relu")):
        raise Refusal(f"{operator_name(node)} takes no scales")
    axis = 1 - len(weight.shape) if is_convolution(site) else (-1 if site.index == 1 else -2)
    walk.columns[node] = channel = walk.only(labels, axis)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        walk.operand(node, 2, channel.reshape(-1, 1) if axis == -2 and not is_convolution(site) else channel)


def _part(walk: Walk, node: ir.Node, value: ir.Value, labels: Labels) -> None:
    found, whole = parts(node), node.inputs[0]
    part = found[list(node.outputs).index(value)]
    alone = len(found) == 1 and whole is not None and len(whole.uses()) == 1
    if part.size is None and not alone:
        raise Refusal("a part of an axis of unknown size")
    walk.operand(node, 0, part.back(labels, alone=alone))


def _norm(walk: Walk, node: ir.Node, labels: Labels) -> None:
    axis, first = node.attributes.get("axis"), node.inputs[0]
    if axis is not None and axis.as_int() != -1 and (first is None or axis.as_int() != len(dims_of(first)) - 1):
        raise Refusal(f"{operator_name(node)} normalizes over several axes")
    channel = walk.only(labels, -1)
    for index in _NORMS[domain_of(node), node.op_type]:
        if index < len(node.inputs) and node.inputs[index] is not None:
            walk.operand(node, index, channel)


def _attention(walk: Walk, node: ir.Node, labels: Labels) -> None:
    """Each head passes the scales of its channels on to its values; heads that share values share scales."""
    values = node.inputs[2] if len(node.inputs) > 2 else None
    kept = any(each.uses() or each.is_graph_output() for each in node.outputs[1:])
    others = [each for at, each in enumerate(node.inputs) if at in _ATTENTIONS[domain_of(node), node.op_type]]
    if values is None or kept or any(each is not None for each in others):
        raise Refusal(f"{operator_name(node)} keeps or packs its values")
    walk.passed.add("value")
    walk.covered.add((node, 2))
    shape = dims_of(values)
    if len(shape) == 4:
        labels = padded(labels, 4)
        heads, own = shape[1], labels.shape[1]
    else:
        own = int_of(node, "num_heads") or int_of(node, "q_num_heads")
        heads = int_of(node, "kv_num_heads") or own
        labels = walk.only(labels, -1).reshape(own or 1, 1, -1)
    if not isinstance(heads, int) or not heads or own % heads:
        raise Refusal(f"the heads of {operator_name(node)} '{node.name}' are not known")
    shared = labels.reshape(*labels.shape[:-3], heads, own // heads, *labels.shape[-2:])
    labels = walk.tied(shared, shared.ndim - 3).squeeze(-3)
    walk.visit(values, labels if len(shape) == 4 else labels.reshape(-1))


def _first(walk: Walk, node: ir.Node, labels: Labels) -> None:
    walk.operand(node, 0, labels)


def _sum(walk: Walk, node: ir.Node, labels: Labels) -> None:
    walk.operand(node, 0, labels)
    walk.operand(node, 1, labels)


def _transposed(walk: Walk, node: ir.Node, labels: Labels) -> None:
    perm = perm_of(node)
    walk.operand(node, 0, padded(labels, len(perm)).transpose(np.argsort(perm)))


def _factor(walk: Walk, node: ir.Node, labels: Labels) -> None:
    """One of two factors: a constant one where it has a number a channel, else the first that can be scaled."""
    constants = [constant_shape(each) for each in node.inputs]
    for index, shape in enumerate(constants):
        if shape is not None and math.prod(shape) > 1:
            walk.operand(node, index, labels)
            return
    if node.inputs[0] is node.inputs[1]:
        raise Refusal("it is multiplied by itself")
    reasons = []
    for index in (1, 0):
        if constants[index] is None:
            trial = walk.try_out()
            try:
                trial.operand(node, index, labels)
            except Refusal as refusal:
                reasons.append(str(refusal))
            else:
                walk.take(trial)
                if constants[1 - index] is None:
                    walk.passed.add("gate")
                return
    raise Refusal(reasons[-1] if reasons else f"{operator_name(node)} takes no scales")


def _quotient(walk: Walk, node: ir.Node, labels: Labels) -> None:
    below = constant_shape(node.inputs[1])
    if below is not None and math.prod(below) > 1:
        walk.operand(node, 1, labels, divided=True)
    else:
        walk.operand(node, 0, labels)


def _weighing(walk: Walk, node: ir.Node, labels: Labels) -> None:
    """A product of two activations sums over one axis of each; the others stay what they are."""
    wide = padded(labels, 2)
    if node.inputs[0] is node.inputs[1]:
        raise Refusal("it is multiplied by itself")
    if wide.shape[-1] > 1 and wide.shape[-2] > 1:
        raise Refusal("a product of two activations takes scales along one axis")
    walk.passed.add("value")
    walk.operand(node, 1 if wide.shape[-2] == 1 else 0, labels)


def _pooled(walk: Walk, node: ir.Node, labels: Labels) -> None:
    rank = len(dims_of(node.outputs[0]))
    walk.operand(node, 0, walk.only(labels, 1 - rank).reshape(-1, *(1,) * (rank - 2)))


def _reduced(walk: Walk, node: ir.Node, labels: Labels) -> None:
    """Channels that are not reduced over keep their scales."""
    axes, keeps, whole = node.attributes.get("axes"), node.attributes.get("keepdims"), node.inputs[0]
    reduced = axes.as_ints() if axes else constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if not reduced or whole is None:
        raise Refusal(f"{operator_name(node)} takes no scales")
    rank = len(dims_of(whole))
    labels = padded(labels, len(dims_of(node.outputs[0])))
    for axis in sorted(axis % rank for axis in reduced):
        labels = walk.tied(labels, axis) if keeps is None or keeps.as_int() else np.expand_dims(labels, axis)
    walk.operand(node, 0, labels)


def _batch_norm(walk: Walk, node: ir.Node, labels: Labels) -> None:
    channel = walk.only(labels, 1 - len(dims_of(node.outputs[0])))
    walk.operand(node, 1, channel)
    walk.operand(node, 2, channel)


_PLAIN: Mapping[str, Callable[[Walk, ir.Node, Labels], None]] = {
    "Add": _sum,
    "Sub": _sum,
    "Mul": _factor,
    "Div": _quotient,
    "MatMul": _weighing,
    "Transpose": _transposed,
    "Expand": _first,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pooled),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduced),
}
