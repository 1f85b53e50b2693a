"""Data made from what a model says about its inputs, for when there is none: better than nothing, worse than any."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.model.constants import constant_tensor
from onnxq.model.operators import DOMAIN, is_op
from onnxq.runtime.inputs import Input, token_feed, token_input
from onnxq.statistics.data import Array, Samples

SYNTHETIC = "synthetic"
_SEED = 20250101
# Size of a dimension that the model leaves open: of images; others are as long as a window has tokens, as are those of
# caches, which exporters call 'past_decoder_sequence_length' and so on.
_PIXELS, _OF_TOKENS = 64, "sequence"
# Operators that hand indices on to a lookup.
_PASS_ON = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose")
# Operators that may stand between an image and its first convolution, beside those of onnxq that round it.
_KEEP_CHANNELS = ("Cast", "Identity", "Add", "Sub", "Mul", "Div", "Pad", "QuantizeLinear", "DequantizeLinear")


def synthetic(
    graph: ir.Graph, inputs: tuple[Input, ...], *, sequence: int, samples: int
) -> tuple[Array | dict[str, Samples], int]:
    """Data for `feeds_for`, the same each time, and the number of tokens in a window.

    A language model gets uniformly random tokens of its vocabulary. Other inputs get normal floats, true booleans,
    any byte, and integers that are valid where the model looks them up in a table, else 0 and 1.

    Args:
        graph: Of the model.
        inputs: What the model takes.
        sequence: Tokens in a window, and the size of a dimension that the model leaves open.
        samples: How many.
    """
    if (ids := _only_tokens(inputs)) is not None:
        sequence = ids.fixed(1) or sequence
        bound = _bound(graph, ids.name) or 2
        return np.random.default_rng(_SEED).integers(0, bound, samples * sequence), sequence
    batches = {each.fixed(0) for each in inputs if each.shape} - {None}
    # Without a batch axis that all inputs share, a sample is all that the model takes at once.
    whole = len(batches) > 1 or not all(each.shape for each in inputs)
    made: dict[str, Samples] = {}
    shapes = _shapes(graph, inputs, sequence)
    for number, each in enumerate(inputs):
        sample = shapes[each.name]
        shape = (samples, *(sample if whole else sample[1:]))
        made[each.name] = Random(shape, each.dtype, (_SEED, number), _bound(graph, each.name))
    return made, sequence


def _shapes(graph: ir.Graph, inputs: tuple[Input, ...], sequence: int) -> dict[str, tuple[int, ...]]:
    """Of one sample of each input, with a batch of one; what has one name has one size."""
    named: dict[str, int] = {}
    found: dict[str, tuple[int, ...]] = {}

    def size(each: Input, axis: int) -> int:
        dim = each.shape[axis]
        if isinstance(dim, int):
            return dim
        if axis == 0:
            return 1
        if axis == 1 and (channels := _channels(graph, each.name)) is not None:
            return channels
        usual = _PIXELS if len(each.shape) > 3 and _OF_TOKENS not in (dim or "") else sequence
        return usual if dim is None else named.setdefault(dim, usual)

    for each in sorted(inputs, key=lambda each: len(each.shape)):
        found[each.name] = tuple(size(each, axis) for axis in range(len(each.shape)))
    return found


def _channels(graph: ir.Graph, name: str) -> int | None:
    """The channels that a convolution wants of an input; None where none reads it."""
    reached = [value for value in graph.inputs if value.name == name]
    for value in reached:
        for node in value.consumers():
            weight = node.inputs[1] if is_op(node, "Conv") else None
            if weight is not None and weight.shape is not None and isinstance(each := weight.shape[1], int):
                return each * node.attributes.get_int("group", 1)
            if node.domain == DOMAIN or is_op(node, *_KEEP_CHANNELS):
                reached.extend(output for output in node.outputs if output not in reached)
    return None


@dataclass(frozen=True)
class Random:
    """Samples that are made when they are asked for, each from its own seed.

    Attributes:
        shape: Of all samples.
        dtype: Of the elements.
        seed: Of the input.
        bound: Integers are below it; None where nothing is known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seed: tuple[int, int]
    bound: int | None

    @property
    def ndim(self) -> int:
        """Dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.intp]) -> Array:
        return np.stack([self._sample(int(row)) for row in rows])

    def _sample(self, row: int) -> Array:
        rng, shape = np.random.default_rng((*self.seed, row)), self.shape[1:]
        if self.dtype.kind == "f":
            return rng.standard_normal(shape).astype(self.dtype)
        if self.dtype.kind == "b":
            return np.ones(shape, np.bool_)
        top = 256 if self.dtype == np.uint8 and self.bound is None else self.bound or 2
        return rng.integers(0, min(top, np.iinfo(self.dtype).max + 1), shape).astype(self.dtype)


def _only_tokens(inputs: tuple[Input, ...]) -> Input | None:
    """The input for token ids of a language model, all of whose other inputs follow from it."""
    try:
        token_feed(inputs, np.zeros((1, 2), np.int64))
    except DataError:
        return None
    return token_input(inputs)


def _bound(graph: ir.Graph, name: str) -> int | None:
    """Rows of the smallest table that an input looks up."""
    reached = [value for value in graph.inputs if value.name == name]
    found = []
    for value in reached:
        for node, index in value.uses():
            if is_op(node, *_PASS_ON) and index == 0:
                reached.extend(output for output in node.outputs if output not in reached)
            elif is_op(node, "Gather") and index == 1 and node.inputs[0] is not None:
                table, axis = constant_tensor(node.inputs[0]), node.attributes.get("axis")
                if table is not None:
                    found.append(int(table.shape.numpy()[axis.as_int() if axis is not None else 0]))
    return min(found, default=None)
