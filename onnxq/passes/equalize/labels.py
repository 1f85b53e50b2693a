"""Labels: which channel of an activation each element of another value belongs to.

An array of integers that broadcasts to the value, its axes aligned at the end: element i of the value belongs to
channel `labels[i]`, or to none where that is -1. An axis of size 1 says that the channel does not depend on it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.passes.step import Refusal

Labels = np.ndarray
Dim = int | str | None


def dims_of(value: ir.Value) -> tuple[Dim, ...]:
    """The shape of a value, symbols by their names.

    Raises:
        Refusal: It is not known how many axes there are.
    """
    if value.shape is None:
        raise Refusal(f"the shape of '{value.name}' is not known")
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def padded(labels: Labels, rank: int) -> Labels:
    """With more axes of size 1 at the front."""
    return labels.reshape((1,) * max(rank - labels.ndim, 0) + labels.shape)


def reshaped(labels: Labels, source: Sequence[Dim], target: Sequence[Dim]) -> Labels:
    """Labels of a value of one shape as those of the same elements in another shape.

    Raises:
        Refusal: The two shapes do not tell how.
    """
    source, target = _same_unknown(source, target)
    # What both shapes have at the end stays what it is, also where its size is not known.
    common = 0
    while common < min(len(source), len(target)) and source[-1 - common] == target[-1 - common] is not None:
        common += 1
    labels = padded(labels, common)
    at = labels.ndim - common
    front, back = labels.shape[:at], labels.shape[at:]
    while front and front[0] == 1:
        front = front[1:]
    if not front:
        return labels.reshape(back)
    end = len(source) - common
    # Channels do not depend on the axes before, but some of these can become one axis with those that they depend on.
    for start in range(end - len(front), -1, -1):
        known = _sizes(source[start:end])
        taken = None if known is None else _tail(target[: len(target) - common], math.prod(known))
        if known is not None and taken is not None:
            wide = np.broadcast_to(padded(labels.reshape(front + back), len(known + back)), known + back)
            return wide.reshape(taken + back)
    raise Refusal(f"a shape {list(source)} that becomes {list(target)} does not tell where channels go")


def _sizes(dims: Sequence[Dim]) -> tuple[int, ...] | None:
    """The dimensions, where all of them are known."""
    known = tuple(dim for dim in dims if isinstance(dim, int))
    return known if len(known) == len(dims) else None


def _tail(dims: Sequence[Dim], count: int) -> tuple[int, ...] | None:
    """The last dimensions that together have `count` elements, if there are such."""
    for length in range(len(dims) + 1):
        sizes = _sizes(dims[len(dims) - length :])
        if sizes is None or math.prod(sizes) == count:
            return sizes
    return None


def _same_unknown(source: Sequence[Dim], target: Sequence[Dim]) -> tuple[Sequence[Dim], Sequence[Dim]]:
    """The two shapes, with one name for what is unknown where each has one such size and they must be equal."""
    sizes = [math.prod(dim for dim in dims if isinstance(dim, int)) for dims in (source, target)]
    unknown = [sum(not isinstance(dim, int) for dim in dims) for dims in (source, target)]
    if unknown != [1, 1] or sizes[0] != sizes[1]:
        return source, target
    return [dim if isinstance(dim, int) else "" for dim in source], [
        dim if isinstance(dim, int) else "" for dim in target
    ]


@dataclass(frozen=True)
class Part:
    """The part of a value that a node gives on.

    Attributes:
        axis: Counted from the end, in the whole value.
        indices: Of the entries that are given on.
        size: Entries of the axis; None where it is not known, and then all are taken for given on.
        dropped: The axis is gone in the part.
    """

    axis: int
    indices: np.ndarray
    size: int | None
    dropped: bool = False

    def of(self, labels: Labels) -> Labels:
        """The labels of the part, from those of the whole."""
        labels = padded(labels, -self.axis)
        if labels.shape[self.axis] > 1:
            if self.size is None:
                raise Refusal("a part of an axis of unknown size")
            labels = labels.take(self.indices, axis=self.axis)
        return labels.squeeze(self.axis) if self.dropped else labels

    def back(self, labels: Labels, *, alone: bool) -> Labels:
        """The labels of the whole, from those of the part: other entries belong to no channel.

        Where nobody reads other entries (`alone`), and the channel does not depend on the axis, that is so for all.
        """
        if self.dropped:
            labels = np.expand_dims(padded(labels, -self.axis - 1), self.axis)
        labels = padded(labels, -self.axis)
        if labels.shape[self.axis] == 1 and (alone or self.size is None):
            return labels
        if self.size is None:
            raise Refusal("a part of an axis of unknown size")
        shape = list(labels.shape)
        shape[self.axis] = self.size
        whole = np.full(shape, -1)
        np.moveaxis(whole, self.axis, 0)[self.indices] = np.moveaxis(labels, self.axis, 0)
        return whole
