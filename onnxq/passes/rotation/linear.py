"""`Linear`: a product with a weight matrix of its own, into which a rotation can go; and what lies between two."""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.model.constants import FLOAT_TYPES, constant_ints, constant_shape
from onnxq.model.operators import domain_of, is_op, is_set
from onnxq.model.products import is_unscaled
from onnxq.model.shapes import Shapes
from onnxq.model.sites import Weight

_UNCHANGED = ("Identity", "Dropout")


@dataclass(frozen=True)
class Linear:
    """`MatMul(x, weight)` or `Gemm(x, weight, bias)` in the main graph.

    Attributes:
        node: The operator; nobody else reads its weight.
        weight: [K, N].
    """

    node: ir.Node
    weight: Weight

    @property
    def x(self) -> ir.Value:
        """What is multiplied with the weight."""
        value = self.node.inputs[0]
        if value is None:
            raise ValueError(self.node.name)
        return value

    @property
    def y(self) -> ir.Value:
        """What comes out, without the bias of an Add behind it."""
        return self.node.outputs[0]


def find_linears(graph: ir.Graph, weights: Iterable[Weight]) -> dict[ir.Node, Linear]:
    """All linears of the main graph, by node."""
    found = {}
    for weight in weights:
        if weight.obstacle or weight.in_function or len(weight.sites) != 1 or len(weight.shape) != 2:
            continue
        site = weight.sites[0]
        if site.node.graph is graph and site.index == 1 and site.layout.reduction == 0 and _is_plain(site.node):
            found[site.node] = Linear(site.node, weight)
    return found


def _is_plain(node: ir.Node) -> bool:
    return is_op(node, "MatMul", "Gemm") and is_unscaled(node) and is_set(node, "transA") is False


def is_constant_row(value: ir.Value | None) -> bool:
    """Whether a value is a constant with a number for each channel."""
    shape = constant_shape(value)
    return shape is not None and bool(shape) and shape[-1] > 1


def keeps_rows(node: ir.Node, shapes: Shapes, width: int) -> bool:
    """Whether what comes out are rows of what goes in at input 0, each stretch of `width` channels in one piece."""
    if domain_of(node) != "" or not node.inputs:
        return False
    if node.op_type in _UNCHANGED:
        return True
    dims = shapes.of(node.inputs[0])
    match node.op_type:
        case "Cast":
            return ir.DataType(node.attributes["to"].as_int()) in (*FLOAT_TYPES, ir.DataType.DOUBLE)
        case "Reshape":
            ends = shapes.last(node.inputs[0]), shapes.last(node.outputs[0])
            return all(each is not None and each > 0 and each % width == 0 for each in ends)
        case "Transpose":
            perm = node.attributes.get("perm")
            return perm is not None and list(perm.as_ints())[-1] == len(perm.as_ints()) - 1
        case "Expand":
            return shapes.last(node.inputs[0]) == width == shapes.last(node.outputs[0])
        case "Unsqueeze":
            axes, after = constant_ints(node.inputs[1]), shapes.of(node.outputs[0])
            return after is not None and axes is not None and all(axis % len(after) != len(after) - 1 for axis in axes)
        case "Squeeze" | "Slice":
            at = 1 if node.op_type == "Squeeze" else 3
            axes = constant_ints(node.inputs[at]) if len(node.inputs) > at else None
            return dims is not None and axes is not None and _not_last(axes, dims)
        case "Gather":
            axis = node.attributes.get("axis")
            return dims is not None and _not_last((0 if axis is None else axis.as_int(),), dims)
        case _:
            return False


def _not_last(axes: Iterable[int], dims: tuple[int | None, ...]) -> bool:
    return all(axis % len(dims) != len(dims) - 1 for axis in axes)
