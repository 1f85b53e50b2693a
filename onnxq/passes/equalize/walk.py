"""Which constants must be scaled together so that the channels of one activation are, and nothing else changes.

The walk begins at the activation. Everybody who reads it must be a product with a weight, whose rows make up for the
scaling, or show it in another shape. Whoever makes it must be able to scale it: a product by the columns of its weight,
a normalization by its scale, an operator that only passes scales on by whoever makes its input. What comes out of an
attention, of the gate of a feed-forward layer or of a Relu is scaled so, through several operators.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import constant_shape
from onnxq.model.operators import domain_of, operator_name
from onnxq.model.sites import Site, Weight
from onnxq.passes.calibrate import channel_axis
from onnxq.passes.equalize.labels import Labels, dims_of, padded, reshaped
from onnxq.passes.equalize.nodes import (
    PARTS,
    check_product,
    is_convolution,
    is_homogeneous,
    is_view,
    parts,
    perm_of,
)
from onnxq.passes.step import Refusal
from onnxq.recipes import SiteKind

Products = Mapping[ir.Node, tuple[Weight, Site]]
"""Operators that multiply with a weight."""


@dataclass(frozen=True)
class Scaled:
    """A constant operand that takes scales.

    Attributes:
        node: Who reads it.
        index: Which input.
        labels: Broadcast to it, or it to them.
        divided: It is a divisor, which takes the inverse.
    """

    node: ir.Node
    index: int
    labels: Labels
    divided: bool = False


ScaleOutput = Callable[["Walk", ir.Node, ir.Value, Labels], None]
"""Has an output of a node scaled, and asks the walk for what that takes; a `Refusal` where the node cannot do that."""


@dataclass
class Walk:
    """What was found on the way.

    Attributes:
        products: All operators with a weight.
        channels: Of the activation.
        scale_output: What each operator asks for, `makers.scale_output`.
        rows: Products that make up for the scaling, with the channel of each row of their weight.
        columns: Products that scale, with the channel of each column.
        constants: Other operands that scale.
        scaled: Values that are scaled.
        covered: Inputs of nodes whose output is scaled because they are.
        passed: Kinds of sites that the scales pass through.
    """

    products: Products
    channels: int
    scale_output: ScaleOutput
    rows: dict[ir.Node, np.ndarray] = field(default_factory=dict)
    columns: dict[ir.Node, np.ndarray] = field(default_factory=dict)
    constants: list[Scaled] = field(default_factory=list)
    scaled: dict[ir.Value, Labels] = field(default_factory=dict)
    covered: set[tuple[ir.Node, int]] = field(default_factory=set)
    passed: set[SiteKind] = field(default_factory=set)
    _upper: dict[int, int] = field(default_factory=dict)

    @property
    def kind(self) -> SiteKind:
        """Where the activation stands."""
        if "value" in self.passed:
            return "value"
        if "gate" in self.passed:
            return "gate"
        return "linear" if self.columns else "norm"

    @property
    def classes(self) -> np.ndarray:
        """[channels] the first of the channels that must share a scale with each."""
        return np.array([self._root(channel) for channel in range(self.channels)])

    def visit(self, value: ir.Value, labels: Labels) -> None:
        """Have a value scaled.

        Raises:
            Refusal: It cannot be, and the walk is of no use any more.
        """
        if value in self.scaled:
            self._tie(self.scaled[value], labels)
            return
        self._pass_on(value, labels)
        node = value.producer()
        if node is None:
            raise Refusal(f"'{value.name}' is an input of the model")
        self.scale_output(self, node, value, labels)

    def read(self, node: ir.Node, index: int, labels: Labels) -> None:
        """Let somebody who reads a scaled value make up for it.

        Raises:
            Refusal: As `visit`.
        """
        if node in self.products:
            weight, site = self.products[node]
            value = node.inputs[index]
            if index != 1 - min(site.index, 1) or value is None:
                raise Refusal(f"{operator_name(node)} '{node.name}' reads it in another place than a product does")
            check_product(node, weight)
            self.rows[node] = self.only(labels, row_axis(weight, site, value))
        elif domain_of(node) != "" or index != 0:
            raise Refusal(f"{operator_name(node)} reads it too")
        elif node.op_type in PARTS:
            for at, part in parts(node).items():
                if (left := part.of(labels)).max(initial=-1) >= 0:
                    self._pass_on(node.outputs[at], left)
        elif is_homogeneous(node):
            self._pass_on(node.outputs[0], labels)
        elif node.op_type == "Transpose":
            self._pass_on(node.outputs[0], padded(labels, len(perm_of(node))).transpose(perm_of(node)))
        elif is_view(node) and node.inputs[0] is not None:
            self._pass_on(node.outputs[0], reshaped(labels, dims_of(node.inputs[0]), dims_of(node.outputs[0])))
        elif node.op_type != "Shape":
            raise Refusal(f"{operator_name(node)} reads it too")

    def _pass_on(self, value: ir.Value, labels: Labels) -> None:
        """A value is scaled: whoever reads it has to go along."""
        if value in self.scaled:
            self._tie(self.scaled[value], labels)
            return
        if value.is_graph_output():
            raise Refusal(f"'{value.name}' is an output of the model")
        self.scaled[value] = labels
        for node, index in value.uses():
            if (node, index) not in self.covered:
                self.read(node, index, labels)

    def operand(self, node: ir.Node, index: int, labels: Labels, *, divided: bool = False) -> None:
        """Have an input of a node scaled, as a constant or by whoever makes it.

        Raises:
            Refusal: As `visit`.
        """
        value = node.inputs[index]
        if value is None:
            raise Refusal(f"{operator_name(node)} '{node.name}' lacks input {index}")
        if constant_shape(value) is not None:
            self.constants.append(Scaled(node, index, labels, divided))
            return
        self.covered.add((node, index))
        dims = dims_of(value)
        for axis in range(-labels.ndim, 0):
            if labels.shape[axis] > 1 and (-axis > len(dims) or dims[axis] == 1):
                labels = self.tied(labels, axis + labels.ndim)
        self.visit(value, labels.reshape(labels.shape[max(labels.ndim - len(dims), 0) :]))

    def only(self, labels: Labels, axis: int) -> np.ndarray:
        """The channel of each entry of one axis, counted from the end; the entries of all others must share it."""
        labels = padded(labels, -axis)
        for other in range(labels.ndim):
            if other != labels.ndim + axis:
                labels = self.tied(labels, other)
        return labels.reshape(-1)

    def tied(self, labels: Labels, axis: int) -> Labels:
        """Labels that do not depend on an axis; what they said there must share a scale."""
        first = labels.take([0], axis=axis)
        self._tie(labels, first)
        return first

    def try_out(self) -> "Walk":
        """A copy, to be given to `take` where what it tries goes well."""
        return replace(
            self,
            rows=dict(self.rows),
            columns=dict(self.columns),
            constants=list(self.constants),
            scaled=dict(self.scaled),
            covered=set(self.covered),
            passed=set(self.passed),
            _upper=dict(self._upper),
        )

    def take(self, other: "Walk") -> None:
        """Go on where a copy is."""
        self.__dict__.update(other.__dict__)

    def _tie(self, some: Labels, others: Labels) -> None:
        pairs = np.stack([each.reshape(-1) for each in np.broadcast_arrays(some, others)])
        for one, other in np.unique(pairs, axis=1).T:
            if (one < 0) != (other < 0):
                raise Refusal("a channel of it is one value with something that keeps its scale")
            if one >= 0:
                low, high = sorted((self._root(int(one)), self._root(int(other))))
                self._upper[high] = low

    def _root(self, channel: int) -> int:
        while (upper := self._upper.get(channel, channel)) != channel:
            channel = upper
        return channel


def row_axis(weight: Weight, site: Site, value: ir.Value) -> int:
    """The axis of an operand that meets the rows of a weight, counted from the end."""
    if is_convolution(site):
        return 1 - len(weight.shape)
    return channel_axis(site, value)


def values_of(products: Products) -> Iterator[tuple[ir.Node, ir.Value]]:
    """What each product multiplies with its weight."""
    for node, (_, site) in products.items():
        value = node.inputs[1 - min(site.index, 1)]
        if value is not None:
            yield node, value
