"""Carry rotations out: into the weights before and behind them, and as operators of their own where there are none."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxq.functions import DOMAIN
from onnxq.methods.equalize.rotation import Rotation
from onnxq.model.constants import constant_array, constant_shape
from onnxq.model.operators import is_op
from onnxq.model.sites import Weight
from onnxq.passes.constants import add_constant, give_operand, store_weight
from onnxq.passes.edit import Editor, add_behind, earliest
from onnxq.passes.rotation.linear import Linear
from onnxq.passes.rotation.norm import Norm, Operand
from onnxq.passes.rotation.places import Heads
from onnxq.passes.rotation.stream import Stream
from onnxq.passes.sink import Sink


@dataclass
class Turns:
    """What happens around one linear.

    Attributes:
        x: What its input is rotated by.
        y: What its output is rotated by: rotations, each with the first of its columns and the one behind the last.
        norm: Whose scale and shift move into it.
        online: An operator rotates its input, which has so many axes; they need be known only where the rotation has
            more channels. None: something else does.
    """

    x: Rotation | None = None
    y: list[tuple[Rotation, tuple[int, int]]] = field(default_factory=list)
    norm: Norm | None = None
    online: int | None = None


class Folding:
    """Collects rotations; each weight is written once, with all that reach it."""

    def __init__(self) -> None:
        self._turns: dict[Linear, Turns] = {}
        self._streams: list[tuple[Stream, Rotation]] = []

    def of(self, linear: Linear) -> Turns:
        """What happens around a linear so far."""
        return self._turns.setdefault(linear, Turns())

    def rotate_stream(self, stream: Stream, turn: Rotation) -> None:
        """Rotate a residual stream."""
        self._streams.append((stream, turn))
        for linear in stream.linears:
            self.of(linear).y.append((turn, (0, stream.width)))
        for linear, norm in stream.readers:
            self.of(linear).x = turn
            self.of(linear).norm = norm

    def rotate_heads(self, heads: Heads, turn: Rotation) -> None:
        """Rotate the values of an attention within each head."""
        first, last = heads.columns
        self.of(heads.value).y.append((turn.repeated((last - first) // heads.width), heads.columns))
        self.of(heads.output).x = turn.repeated(heads.output.weight.shape[0] // heads.width)

    def rotate_input(self, linear: Linear, turn: Rotation, rank: int) -> None:
        """Rotate the input of a linear by an operator; `rank` as in `Turns.online`."""
        self.of(linear).x = turn
        self.of(linear).online = rank

    def write(self, model: ir.Model, sink: Sink) -> None:
        """Change the graph."""
        writing = _Writing(Editor(model), sink)
        biases = {_bias_of(linear) for linear in self._turns}
        for stream, turn in self._streams:
            for node, at in stream.constants:
                if (node, at) not in biases:
                    writing.operand(node, at, turn.apply(constant_array(node.inputs[at])))
            for weight in stream.tables:
                writing.weight(weight, turn.apply(weight.read(), axis=-1))
        for linear, turns in self._turns.items():
            writing.linear(linear, turns)
        for norm in dict.fromkeys(norm for stream, _ in self._streams for norm in stream.norms):
            for operand, number in ((norm.scale, 1.0), (norm.shift, 0.0)):
                if operand is not None:
                    writing.operand(*operand, np.full(constant_array(operand[0].inputs[operand[1]]).shape, number))
        for stream, turn in self._streams:
            dtype = stream.readers[0][0].weight.dtype
            for value in stream.exits:
                readers = [use for use in value.uses() if use[0] not in stream.inner]
                writing.online(value, readers, turn.inverse, dtype)
            for value in stream.entries:
                writing.online(value, list(value.uses()), turn, dtype)


class _Writing:
    """New constants and nodes of one model."""

    def __init__(self, editor: Editor, sink: Sink) -> None:
        self._editor = editor
        self._sink = sink
        self._sides: dict[bytes, ir.Value] = {}

    def linear(self, linear: Linear, turns: Turns) -> None:
        """The weight and the bias of a linear, and the operator before it."""
        made, bias = rotated_weight(linear, turns), _bias_of(linear)
        added: np.ndarray | None = None
        if bias is not None:
            added = constant_array(bias[0].inputs[bias[1]]).astype(np.float64)
            added = np.array(np.broadcast_to(added, (*added.shape[:-1], made.shape[1])))
        if turns.norm is not None and turns.norm.shift is not None:
            shifted = numbers_of(turns.norm.shift) @ linear.weight.read().astype(np.float64)
            added = shifted if added is None else added + shifted
        if added is not None:
            _turn_columns(added, turns)
        self.weight(linear.weight, made)
        if bias is not None and added is not None:
            if turns.y or turns.norm is not None:
                self.operand(*bias, added)
        elif added is not None and added.any():
            self._add_bias(linear, added)
        if turns.online is not None and turns.x is not None:
            value, missing = linear.x, turns.x.size - linear.weight.shape[0]
            if missing:
                value = self._filled_up(linear, turns.online, missing)
            self.online(value, [(linear.node, 0)], turns.x, linear.weight.dtype)

    def weight(self, weight: Weight, array: np.ndarray) -> None:
        """Let a weight hold other numbers."""
        store_weight(weight, array, self._sink)

    def operand(self, node: ir.Node, at: int, array: np.ndarray) -> None:
        """Give a node another constant in the place of one that it reads."""
        give_operand(node, at, array, "rotated", self._editor, self._sink)

    def online(self, value: ir.Value, readers: Sequence[Operand], turn: Rotation, dtype: ir.DataType) -> None:
        """Give readers of a value what an operator makes of it."""
        sides = [
            self._side(f"rotation_{turn.size}_{which}", side.astype(dtype.numpy()), value)
            for which, side in (("left", turn.left.T), ("right", turn.right))
        ]
        result = ir.Value(name=f"{value.name}_rotated", type=ir.TensorType(dtype), shape=value.shape)
        made = self._editor.before(
            earliest(node for node, _ in readers), (DOMAIN, "Hadamard"), [value, *sides], {}, result
        )
        for node, at in readers:
            node.replace_input_with(at, made)

    def _filled_up(self, linear: Linear, rank: int, missing: int) -> ir.Value:
        """The input of a linear with channels of zeros behind its own."""
        x, pads = linear.x, np.zeros(2 * rank, np.int64)
        pads[-1] = missing
        result = ir.Value(name=f"{x.name}_filled_up", type=ir.TensorType(linear.weight.dtype))
        inputs = [x, self._constant(f"{x.name}_pads", pads, pads.dtype, x)]
        return self._editor.before(linear.node, ("", "Pad"), inputs, {}, result)

    def _side(self, name: str, array: np.ndarray, owner: ir.Value) -> ir.Value:
        """One of the matrices of a rotation, which all rotations share that have it."""
        key = array.tobytes()
        if key not in self._sides:
            self._sides[key] = self._constant(name, array, array.dtype, owner)
        return self._sides[key]

    def _add_bias(self, linear: Linear, array: np.ndarray) -> None:
        dtype = linear.weight.dtype.numpy()
        constant = self._constant(f"{linear.weight.source.name}_bias", array, dtype, linear.weight.source)
        if is_op(linear.node, "Gemm"):
            linear.node.resize_inputs(3)
            linear.node.replace_input_with(2, constant)
        else:
            add_behind(self._editor, linear.y, constant)

    def _constant(self, name: str, array: np.ndarray, dtype: np.dtype[np.generic], owner: ir.Value) -> ir.Value:
        return add_constant(name, array.astype(dtype), owner, self._editor, self._sink)


def rotated_weight(linear: Linear, turns: Turns) -> np.ndarray:
    """The weight of a linear with everything that happens around it, float64 [K, N]."""
    made = linear.weight.read().astype(np.float64)
    if turns.norm is not None:
        made *= numbers_of(turns.norm.scale)[:, None]
    if turns.x is not None:
        made = turns.x.apply(made, axis=0)
    _turn_columns(made, turns)
    return made


def _turn_columns(array: np.ndarray, turns: Turns) -> None:
    for turn, (first, last) in turns.y:
        array[..., first:last] = turn.apply(array[..., first:last])


def numbers_of(operand: Operand) -> np.ndarray:
    """A constant with a number for each channel, float64 [channels]."""
    return constant_array(operand[0].inputs[operand[1]]).astype(np.float64).reshape(-1)


def _bias_of(linear: Linear) -> Operand | None:
    """The constant that is added to all that a linear puts out, if there is one."""
    if is_op(linear.node, "Gemm"):
        found = len(linear.node.inputs) > 2 and constant_shape(linear.node.inputs[2]) is not None
        return (linear.node, 2) if found else None
    uses = list(linear.y.uses())
    if len(uses) != 1 or not is_op(uses[0][0], "Add") or linear.y.is_graph_output():
        return None
    node, at = uses[0]
    shape = constant_shape(node.inputs[1 - at])
    return (node, 1 - at) if shape and shape[-1] == linear.weight.shape[1] else None
