"""What single nodes do to a value, as far as the scales of its channels go."""

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import FLOAT_TYPES, constant_ints
from onnxq.model.operators import is_op
from onnxq.model.sites import Site, Weight
from onnxq.passes.equalize.labels import Part, dims_of
from onnxq.passes.step import Refusal

# Operators that give parts of their first input.
PARTS = ("Slice", "Split", "Gather")
# Positive factors pass through them: f(s x) = s f(x).
_HOMOGENEOUS = ("Identity", "Cast", "Relu", "LeakyRelu", "Neg", "Abs", "Dropout")
_VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
# ONNX takes any end beyond the last entry for the last.
_END = np.iinfo(np.int32).max


def parts(node: ir.Node) -> dict[int, Part]:
    """What each output of a Slice, a Split, or a Gather of constants is of input 0.

    Raises:
        Refusal: It is not constant.
    """
    whole = node.inputs[0]
    if whole is None:
        raise Refusal(f"{node.op_type} '{node.name}' reads nothing")
    dims = dims_of(whole)

    def axis_of(number: int) -> tuple[int, int | None]:
        at = number % len(dims)
        dim = dims[at]
        return at - len(dims), dim if isinstance(dim, int) else None

    attribute = node.attributes.get("axis")
    given = 0 if attribute is None else attribute.as_int()
    if node.op_type == "Gather":
        indices, (axis, size) = constant_ints(node.inputs[1]), axis_of(given)
        rank = None if node.inputs[1] is None or node.inputs[1].shape is None else len(node.inputs[1].shape)
        if indices is None or rank is None or rank > 1:
            raise Refusal(f"Gather '{node.name}' takes what is not constant")
        return {0: Part(axis, np.array(indices), size, dropped=rank == 0)}
    if node.op_type == "Split":
        axis, size = axis_of(given)
        lengths = [dims_of(output)[axis] for output in node.outputs]
        if size is None or not all(isinstance(length, int) for length in lengths):
            return {at: Part(axis, np.arange(0), None) for at in range(len(lengths))}
        ends = np.cumsum([length for length in lengths if isinstance(length, int)])
        return {at: Part(axis, np.arange(*pair), size) for at, pair in enumerate(pairwise((0, *ends)))}
    numbers = [None if at >= len(node.inputs) else constant_ints(node.inputs[at]) for at in range(1, 5)]
    starts, stops, axes, steps = numbers
    if starts is None or stops is None or len(starts) != 1:
        raise Refusal(f"Slice '{node.name}' takes what is not constant")
    axis, size = axis_of(axes[0] if axes else 0)
    if size is None:
        return {0: Part(axis, np.arange(0), None)}
    return {0: Part(axis, np.arange(size)[slice(starts[0], min(stops[0], _END), steps[0] if steps else 1)], size)}


def is_view(node: ir.Node) -> bool:
    """Whether a node shows the same elements in another shape, without moving any."""
    return is_op(node, *_VIEWS)


def is_homogeneous(node: ir.Node) -> bool:
    """Whether positive factors of single elements pass through a node of one input."""
    if not is_op(node, *_HOMOGENEOUS):
        return False
    return node.op_type != "Cast" or ir.DataType(int_of(node, "to")) in (*FLOAT_TYPES, ir.DataType.DOUBLE)


def perm_of(node: ir.Node) -> list[int]:
    """The permutation of a Transpose."""
    perm = node.attributes.get("perm")
    if perm is not None:
        return list(perm.as_ints())
    value = node.inputs[0]
    return [] if value is None else list(range(len(dims_of(value))))[::-1]


def int_of(node: ir.Node, name: str) -> int:
    """An attribute, 0 where it is not there."""
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def check_product(node: ir.Node, weight: Weight) -> None:
    """Refuse a product whose weight cannot be changed.

    Raises:
        Refusal: It says why.
    """
    if weight.obstacle is not None:
        raise Refusal(f"weight '{weight.name}' cannot be changed: {weight.obstacle}")
    if len(weight.sites) != 1:
        raise Refusal(f"weight '{weight.name}' is shared by {len(weight.sites)} operators")
    if node.op_type == "ConvTranspose" and int_of(node, "group") > 1:
        raise Refusal("a transposed convolution with groups")


def is_convolution(site: Site) -> bool:
    """Whether channels are the second axis of what a product reads and makes."""
    return site.layout.flatten or site.node.op_type == "ConvTranspose"
