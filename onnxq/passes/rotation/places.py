"""Where a rotation touches two weights, or one: between value and output of attention, and in front of a product."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.model.operators import MICROSOFT, domain_of, is_op, operator_name
from onnxq.model.shapes import Shapes
from onnxq.passes.rotation.linear import Linear, is_constant_row, keeps_rows
from onnxq.passes.rotation.stream import Refused, Stream

# What activation functions and gates end in; the microsoft ones are fused.
_ACTIVATIONS = ("Mul", "Gelu", "Relu", "FastGelu", "QuickGelu", "BiasGelu", "Swish", "HardSwish", "Mish", "Elu", "Tanh")


@dataclass(frozen=True)
class Heads:
    """An attention whose values can be rotated within each head (QuaRot's R2): softmax mixes tokens, not channels.

    Attributes:
        value: Makes the values.
        columns: The first of its output channels that are values, and the one behind the last.
        output: Reads what attention makes of them.
        width: Channels of a head.
    """

    value: Linear
    columns: tuple[int, int]
    output: Linear
    width: int


def find_heads(linears: Mapping[ir.Node, Linear], shapes: Shapes) -> list[Heads | Refused]:
    """Attentions, written out in standard operators, between two linears."""
    found: list[Heads | Refused] = []
    for output in linears.values():
        mixing = _attention_before(output)
        if mixing is None:
            continue
        place = str(output.x.name)
        width = shapes.last(mixing.inputs[1])
        if width is None or output.weight.shape[0] % width:
            found.append(Refused(place, "the width of a head is not known"))
            continue
        walked = _values(mixing, linears, shapes, width)
        found.append(Refused(place, walked) if isinstance(walked, str) else Heads(*walked, output, width))
    return found


def _attention_before(output: Linear) -> ir.Node | None:
    """The product of probabilities and values whose heads, side by side, a linear reads."""
    node = output.x.producer()
    if not is_op(node, "Reshape"):
        return None
    while is_op(node, "Reshape") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if not is_op(node, "Transpose") or node.inputs[0] is None:
        return None
    perm = node.attributes.get("perm")
    node = node.inputs[0].producer()
    heads_last = perm is not None and tuple(perm.as_ints()) == (0, 2, 1, 3)
    return node if heads_last and is_op(node, "MatMul") else None


def _values(
    mixing: ir.Node, linears: Mapping[ir.Node, Linear], shapes: Shapes, width: int
) -> tuple[Linear, tuple[int, int]] | str:
    """The linear that makes the values of an attention, and which of its columns; or why they cannot be rotated."""
    reader, value, columns = mixing, mixing.inputs[1], None
    while True:
        if value is None or (node := value.producer()) is None:
            return "its values are an input of the model"
        if value.is_graph_output():
            return f"its values are an output of the model, '{value.name}'"
        if others := [each for each in value.consumers() if each is not reader and not is_op(each, "Shape")]:
            return f"{operator_name(others[0])} '{others[0].name}' reads its values too"
        if node in linears:
            return linears[node], columns or (0, linears[node].weight.shape[1])
        following: ir.Value | None = None
        if is_op(node, "Add"):
            following = next((each for each in node.inputs if not is_constant_row(each)), None)
        elif keeps_rows(node, shapes, width) and not is_op(node, "Slice", "Gather"):
            following = node.inputs[0]
        elif is_op(node, "Split") and columns is None:
            columns = _columns(node, value, shapes, width)
            following = node.inputs[0] if columns else None
        if following is None:
            return f"its values come through {operator_name(node)} '{node.name}', not from a weight of their own"
        reader, value = node, following


def _columns(node: ir.Node, value: ir.Value, shapes: Shapes, width: int) -> tuple[int, int] | None:
    """Which channels of its input a Split gives to one of its outputs; None where they are not known, or not heads."""
    dims, axis = shapes.of(node.inputs[0]), node.attributes.get("axis")
    at = 0 if axis is None else axis.as_int()
    if dims is None or at % len(dims) != len(dims) - 1:
        return None
    sizes = [shapes.last(each) for each in node.outputs[: node.outputs.index(value) + 1]]
    if any(size is None or size % width for size in sizes):
        return None
    stop = sum(size for size in sizes if size)
    return stop - (sizes[-1] or 0), stop


def find_products(
    linears: Mapping[ir.Node, Linear], shapes: Shapes, streams: Sequence[Stream], heads: Sequence[Heads]
) -> list[Linear]:
    """Linears whose input only an operator of its own can rotate (QuaRot's R4).

    It is behind an activation function or a gate, or what comes out goes into a residual stream.
    """
    taken = {linear.node for stream in streams for linear, _ in stream.readers} | {each.output.node for each in heads}
    writing = {linear.node for stream in streams for linear in stream.linears}
    return [
        linear
        for node, linear in linears.items()
        if node not in taken and (node in writing or _is_behind_activation(linear, shapes))
    ]


def _is_behind_activation(linear: Linear, shapes: Shapes) -> bool:
    node = linear.x.producer()
    while node is not None and node.inputs and keeps_rows(node, shapes, linear.weight.shape[0]):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type not in _ACTIVATIONS or domain_of(node) not in ("", MICROSOFT):
        return False
    # A scale of each channel ends a norm.
    return not any(is_constant_row(each) for each in node.inputs)
