"""How a tensor is seen as rows of channels: what an operator multiplies with the columns of its weight."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from onnx import numpy_helper

from onnxq.statistics.nodes import Nodes

# ONNX takes any end beyond the last axis for the last axis.
_END = np.iinfo(np.int64).max


class View(Protocol):
    """A way to see a tensor."""

    @property
    def label(self) -> str:
        """Equal for equal views; names the view in a cache."""

    @property
    def groups(self) -> int:
        """Sets of channels that are looked at apart."""

    @property
    def rank(self) -> int | None:
        """Dimensions of what `rows` gives; None if they are the tensor's own."""

    def rows(self, nodes: Nodes, tensor: str, channels: int) -> str:
        """Add nodes that make rows of a tensor of floats: [n, channels], or [groups, n, channels]."""

    def count(self, shape: Sequence[int]) -> int:
        """The number n of rows, from the shape of what `rows` gives."""


@dataclass(frozen=True)
class Whole:
    """All elements alike."""

    label: str = "all"
    groups: int = 1
    rank: int | None = None

    def rows(self, _nodes: Nodes, tensor: str, _channels: int) -> str:
        """The tensor as it is."""
        return tensor

    def count(self, shape: Sequence[int]) -> int:
        """Elements."""
        return math.prod(shape)


@dataclass(frozen=True)
class Axis:
    """One axis counts channels; all others count rows.

    Attributes:
        axis: -1: x of x @ weight. -2: x of weight @ x. 1: the input of a transposed convolution.
    """

    axis: int = -1
    groups: int = 1
    rank: int | None = 2

    @property
    def label(self) -> str:
        """As `View`."""
        return f"axis {self.axis}"

    def rows(self, nodes: Nodes, tensor: str, channels: int) -> str:
        """[n, channels]; the tensor may have any rank."""
        if self.axis == -2:
            last = nodes.add("Gather", nodes.add("Shape", tensor), nodes.ints(-1))
            tensor = nodes.add("Reshape", tensor, nodes.add("Concat", nodes.ints(-1, channels), last, axis=0))
        elif self.axis == 1:
            tensor = nodes.add("Reshape", tensor, nodes.ints(0, channels, -1))
        elif self.axis != -1:
            raise ValueError(self.axis)
        if self.axis != -1:
            tensor = nodes.add("Transpose", tensor, perm=[0, 2, 1])
        return nodes.add("Reshape", tensor, nodes.ints(-1, channels))

    def count(self, shape: Sequence[int]) -> int:
        """As `View`."""
        return shape[0]


@dataclass(frozen=True)
class Patches:
    """What a convolution multiplies with one filter: a row for each place of the filter, im2col.

    A row has the channels of one group times the places of the kernel, in the order of the filter's weights.

    Attributes:
        kernel: Its size along each spatial axis.
        groups: Of the convolution.
        strides: Empty for 1 everywhere, as are dilations.
        pads: All begins, then all ends; empty for none.
        dilations: Between the elements of the kernel.
        auto_pad: As the operator has it.
    """

    kernel: tuple[int, ...]
    groups: int = 1
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"
    rank: int | None = 3

    @property
    def label(self) -> str:
        """As `View`."""
        return (
            f"patches {self.kernel} groups {self.groups} strides {self.strides} pads {self.pads} "
            f"dilations {self.dilations} {self.auto_pad}"
        )

    def rows(self, nodes: Nodes, tensor: str, channels: int) -> str:
        """[groups, n, channels]: a convolution of each channel with one filter for each place of the kernel."""
        places = math.prod(self.kernel)
        filters = np.eye(places, dtype=np.float32).reshape(places, 1, *self.kernel)
        weight = nodes.add("Constant", value=numpy_helper.from_array(filters))
        sizes = nodes.add("Slice", nodes.add("Shape", tensor), nodes.ints(2), nodes.ints(_END))
        alone = nodes.add("Reshape", tensor, nodes.add("Concat", nodes.ints(-1, 1), sizes, axis=0))
        patches = nodes.add("Conv", alone, weight, **self._attributes())
        flat = nodes.add("Reshape", patches, nodes.ints(0, places, -1))
        last = nodes.add("Gather", nodes.add("Shape", flat), nodes.ints(-1))
        shape = nodes.add("Concat", nodes.ints(-1, self.groups, channels), last, axis=0)
        grouped = nodes.add("Transpose", nodes.add("Reshape", flat, shape), perm=[1, 0, 3, 2])
        return nodes.add("Reshape", grouped, nodes.ints(self.groups, -1, channels))

    def count(self, shape: Sequence[int]) -> int:
        """As `View`."""
        return shape[1]

    def _attributes(self) -> dict[str, Any]:
        given = {"strides": self.strides, "pads": self.pads, "dilations": self.dilations}
        return {"auto_pad": self.auto_pad} | {name: list(value) for name, value in given.items() if value}


@dataclass(frozen=True)
class Heads:
    """[batch, heads, tokens, size]: a token is a row, with the channels of all its heads side by side."""

    label: str = "heads"
    groups: int = 1
    rank: int | None = 2

    def rows(self, nodes: Nodes, tensor: str, channels: int) -> str:
        """[n, heads * size]."""
        tokens_first = nodes.add("Transpose", tensor, perm=[0, 2, 1, 3])
        return nodes.add("Reshape", tokens_first, nodes.ints(-1, channels))

    def count(self, shape: Sequence[int]) -> int:
        """As `View`."""
        return shape[0]


LAST = Axis()
ALL = Whole()
HEADS = Heads()
