"""What norms make of rotated rows, operator by operator, whether fused or written out."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import onnx_ir as ir

from onnxq.model.constants import constant_array, constant_ints, constant_shape
from onnxq.model.operators import is_op
from onnxq.model.shapes import Shapes
from onnxq.passes.rotation.linear import keeps_rows

Operand = tuple[ir.Node, int]
"""A node and the number of an input."""

FUSED = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_ON_NUMBERS = ("Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Pow", "Cast", "Identity", "Max", "Clip")


@dataclass(frozen=True)
class Norm:
    """Operands of a norm that would not let a rotation through.

    Attributes:
        scale: What each channel is multiplied with, a constant.
        shift: What is added to it then, a constant; or None.
    """

    scale: Operand
    shift: Operand | None


class Form(Enum):
    """What becomes of a value when the residual stream is rotated."""

    ROTATED = auto()
    """Its rows are rotated too."""
    SQUARED = auto()
    """Its rows are squares of rotated ones: only their sum stays."""
    NUMBER = auto()
    """One number a row, which stays."""
    SCALED = auto()
    """Its rows are rotated, if scale and shift of the norm are taken out."""


class Kind(NamedTuple):
    """What a value is.

    Attributes:
        form: What becomes of it.
        root: The value of the residual stream that it comes from.
        norm: Of what is `SCALED`.
        keeps_mean: Only if the rotation keeps the mean of a row.
    """

    form: Form
    root: ir.Value
    norm: Norm | None = None
    keeps_mean: bool = False


def squares(node: ir.Node) -> bool:
    """Whether a node squares its first input."""
    if is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    return is_op(node, "Pow") and _number(node.inputs[1]) == 2


def behind(node: ir.Node, given: Sequence[Kind | None], shapes: Shapes, width: int) -> Kind | None:
    """What comes out of a node whose inputs are of these kinds, None for those that are not of the stream.

    Returns:
        None where a rotation could not pass.
    """
    known = [each for each in given if each is not None]
    first = known[0]
    forms = {each.form for each in known}
    if any(each.root is not first.root for each in known):
        return None
    if is_op(node, *FUSED):
        return _fused(node, given, shapes)
    if forms == {Form.ROTATED} and squares(node):
        return Kind(Form.SQUARED, first.root)
    if is_op(node, "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"):
        return _reduced(node, first, shapes)
    if forms == {Form.NUMBER}:
        others = [value for value, kind in zip(node.inputs, given, strict=True) if kind is None and value is not None]
        plain = is_op(node, *_ON_NUMBERS) and all(_number(each) is not None for each in others)
        return first if plain else None
    rows = next((each for each in known if each.form in (Form.ROTATED, Form.SCALED)), None)
    if rows is None:
        return None
    if is_op(node, "Mul", "Div", "Add", "Sub"):
        return _scaled(node, given, rows, width)
    same = given[0] is rows and len(known) == 1 and shapes.last(node.outputs[0]) == width
    return rows if same and keeps_rows(node, shapes, width) else None


def _fused(node: ir.Node, given: Sequence[Kind | None], shapes: Shapes) -> Kind | None:
    rows, dims = given[0], shapes.of(node.inputs[0])
    axis = node.attributes.get("axis")
    at = -1 if axis is None else axis.as_int()
    last = at == -1 or (dims is not None and at == len(dims) - 1)
    fits = rows is not None and rows.form is Form.ROTATED and not any(given[1:]) and last
    operands = [(node, index) for index in range(1, len(node.inputs)) if node.inputs[index] is not None]
    used = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    if rows is None or not fits or used or not operands:
        return None
    if any(constant_shape(each.inputs[index]) is None for each, index in operands):
        return None
    norm = Norm(operands[0], operands[1] if len(operands) > 1 else None)
    return Kind(Form.SCALED, rows.root, norm, node.op_type == "LayerNormalization")


def _reduced(node: ir.Node, rows: Kind, shapes: Shapes) -> Kind | None:
    """A number a row, where all channels are reduced and the axis is kept."""
    listed = node.attributes.get("axes")
    axes = tuple(listed.as_ints()) if listed is not None else constant_ints(node.inputs[1] if node.inputs[1:] else None)
    dims, kept = shapes.of(node.inputs[0]), node.attributes.get("keepdims")
    if axes is None or len(axes) != 1 or (kept is not None and not kept.value):
        return None
    if axes[0] != -1 and (dims is None or axes[0] != len(dims) - 1):
        return None
    linear = node.op_type in ("ReduceMean", "ReduceSum")
    if rows.form is not (Form.SQUARED if linear else Form.ROTATED):
        return Kind(Form.NUMBER, rows.root, keeps_mean=True) if linear and rows.form is Form.ROTATED else None
    return Kind(Form.NUMBER, rows.root)


def _scaled(node: ir.Node, given: Sequence[Kind | None], rows: Kind, width: int) -> Kind | None:
    """Rows, and another operand: a number a row, a constant number, or a constant for each channel."""
    at = given.index(rows)
    other, value = given[1 - at], node.inputs[1 - at]
    if at == 1 and node.op_type in ("Div", "Sub"):
        return None
    additive = node.op_type in ("Add", "Sub")
    if other is not None:
        if other.form is not Form.NUMBER:
            return None
        if additive:
            return rows._replace(keeps_mean=True) if rows.form is Form.ROTATED else None
        return rows
    dims = constant_shape(value)
    if dims is None:
        return None
    if not additive and _number(value) is not None:
        return rows
    if not dims or dims[-1] != width or any(dim != 1 for dim in dims[:-1]):
        return None
    if node.op_type == "Mul" and rows.form is Form.ROTATED:
        return Kind(Form.SCALED, rows.root, Norm((node, 1 - at), None), rows.keeps_mean)
    if node.op_type == "Add" and rows.norm is not None and rows.norm.shift is None:
        return rows._replace(norm=Norm(rows.norm.scale, (node, 1 - at)))
    return None


def _number(value: ir.Value | None) -> float | None:
    """A constant of one element."""
    shape = constant_shape(value)
    return float(constant_array(value).reshape(())) if shape is not None and all(dim == 1 for dim in shape) else None
