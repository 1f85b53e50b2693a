"""`Folding`: scales of activations on their way into constants, which are written once, after all were found."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import constant_array
from onnxq.model.load import Model
from onnxq.model.opset import INITIALIZER_IR_VERSION, raise_to
from onnxq.model.save import Staging
from onnxq.model.sites import Site, Weight
from onnxq.passes.constants import add_constant, give_operand, store_weight
from onnxq.passes.edit import Editor, earliest
from onnxq.passes.equalize.labels import Labels
from onnxq.passes.equalize.places import Place
from onnxq.passes.equalize.walk import Products


@dataclass(frozen=True)
class Picked:
    """Channels of an activation that its products read in place of all of them.

    Attributes:
        kept: Of those, in their order; one that stands several times is read several times.
        merged: Pairs whose sums come behind them, [n, 2].
    """

    kept: np.ndarray
    merged: np.ndarray

    def rows(self, array: np.ndarray, axis: int) -> np.ndarray:
        """What the channels meet of a weight: equal parts of a row that is read several times, means of pairs."""
        rows = np.moveaxis(array, axis, 0)
        times = np.bincount(self.kept, minlength=len(rows))[self.kept]
        parts = rows[self.kept] / times.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype)
        means = (rows[self.merged[:, 0]] + rows[self.merged[:, 1]]) / 2
        return np.moveaxis(np.concatenate([parts, means]), 0, axis)


class Folding:
    """Collects what constants are multiplied with."""

    def __init__(self, products: Products) -> None:
        """`products` are those of the places that will be scaled."""
        self._products = products
        self._weights: dict[ir.Node, list[np.ndarray]] = defaultdict(list)
        self._operands: dict[tuple[ir.Node, int], list[np.ndarray]] = defaultdict(list)
        self._inserted: list[tuple[Place, np.ndarray]] = []
        self._picked: list[tuple[Place, Picked]] = []

    def product(self, node: ir.Node) -> tuple[Weight, Site]:
        """The weight of a product."""
        return self._products[node]

    def weight(self, node: ir.Node) -> np.ndarray:
        """The weight of a product as its operator reads it, with all factors so far: float32."""
        array = self._products[node][0].read().astype(np.float32)
        for factor in self._weights[node]:
            array *= factor.astype(np.float32)
        return array

    def scale(self, place: Place, scales: np.ndarray) -> None:
        """Divide the channels of an activation by positive numbers [channels], and make up for it in its products."""
        walk = place.walk
        if walk is None:
            raise ValueError(place.name)
        exact = np.append(scales.astype(np.float64), 1.0)
        for node, labels in walk.rows.items():
            self._weights[node].append(row_factor(*self._products[node], exact[labels]))
        if place.inserts:
            self._inserted.append((place, scales))
            return
        for node, labels in walk.columns.items():
            self._weights[node].append(_column_factor(*self._products[node], 1 / exact[labels]))
        for each in walk.constants:
            factor = exact[each.labels]
            self._operands[each.node, each.index].append(factor if each.divided else 1 / factor)

    def pick(self, place: Place, picked: Picked) -> None:
        """Let the products of a place read other channels; all of them read it directly, along its last axis."""
        self._picked.append((place, picked))

    def write(self, model: Model, staging: Staging) -> bool:
        """Change the graph; whether there was anything to change.

        Raises:
            ModelError: A constant leaves the range of its type.
        """
        if not (self._weights or self._operands or self._inserted or self._picked):
            return False
        editor = Editor(model.ir)
        raise_to(model.ir, 0, INITIALIZER_IR_VERSION)
        picks = {node: picked for place, picked in self._picked for node in (place.walk.rows if place.walk else ())}
        for node in {**self._weights, **picks}:
            self._write_weight(node, picks.get(node), staging)
        for (node, index), factors in self._operands.items():
            array = constant_array(node.inputs[index]).astype(np.float64)
            for factor in factors:
                array = array * factor
            give_operand(node, index, array, "scaled", editor, staging)
        for place, scales in self._inserted:
            _insert_mul(place, 1 / scales, self._products, editor, staging)
        for place, picked in self._picked:
            _insert_picks(place, picked, self._products, editor, staging)
        return True

    def _write_weight(self, node: ir.Node, picked: Picked | None, staging: Staging) -> None:
        weight, site = self._products[node]
        array = self.weight(node)
        if picked is not None:
            array = picked.rows(array, site.layout.reduction)
        store_weight(weight, array, staging)


def row_factor(weight: Weight, site: Site, values: np.ndarray) -> np.ndarray:
    """Numbers for the rows of a weight, so that they broadcast to it."""
    if site.layout.flatten and len(values) != weight.shape[1]:
        # A convolution with groups: each group of output channels has input channels of its own.
        groups = len(values) // weight.shape[1]
        each = np.repeat(values.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return each.reshape(*each.shape, *(1,) * (len(weight.shape) - 2))
    return _along(site.layout.reduction, weight, values)


def _column_factor(weight: Weight, site: Site, values: np.ndarray) -> np.ndarray:
    return _along(site.layout.channel, weight, values)


def _along(axis: int, weight: Weight, values: np.ndarray) -> np.ndarray:
    return values.reshape([-1 if at == axis else 1 for at in range(len(weight.shape))])


def _readers(place: Place, products: Products) -> list[tuple[ir.Node, int]]:
    """The products of a place that read it directly."""
    rows = {} if place.walk is None else place.walk.rows
    return [(node, index) for node, index in place.value.uses() if node in rows and node in products]


def _insert_mul(place: Place, factors: Labels, products: Products, editor: Editor, staging: Staging) -> None:
    """One Mul for all products that read an activation."""
    readers = _readers(place, products)
    first = earliest(node for node, _ in readers)
    dtype = place.value.dtype or ir.DataType.FLOAT
    shape = (-1,) if place.axis == -1 else (-1, *(1,) * _behind(place, products))
    array = factors.astype(dtype.numpy()).reshape(shape)
    constant = add_constant(f"{place.name}_scale", array, place.value, editor, staging)
    made = editor.before(first, ("", "Mul"), [place.value, constant], {}, _named(place, "scaled"))
    for node, index in readers:
        node.replace_input_with(index, made)


def _behind(place: Place, products: Products) -> int:
    """How many axes stand behind the axis of the channels."""
    if place.axis == -2:
        return 1
    node = _readers(place, products)[0][0]
    return len(products[node][0].shape) - 2


def _insert_picks(place: Place, picked: Picked, products: Products, editor: Editor, staging: Staging) -> None:
    """A Gather of the channels that are kept, and sums of those that are merged."""
    readers = [(node, 1 - products[node][1].index) for node in (place.walk.rows if place.walk else ())]
    first = earliest(node for node, _ in readers)
    # Behind a Mul that was inserted before.
    value = readers[0][0].inputs[readers[0][1]]

    def gather(indices: np.ndarray, what: str) -> ir.Value:
        name = f"{place.name}_{what}_channels"
        constant = add_constant(name, indices.astype(np.int64), place.value, editor, staging)
        return editor.before(first, ("", "Gather"), [value, constant], {"axis": -1}, _named(place, what))

    made = gather(picked.kept, "kept")
    if len(picked.merged):
        ones, others = (gather(picked.merged[:, at], what) for at, what in ((0, "first"), (1, "second")))
        summed = editor.before(first, ("", "Add"), [ones, others], {}, _named(place, "merged"))
        made = editor.before(first, ("", "Concat"), [made, summed], {"axis": -1}, _named(place, "picked"))
    for node, index in readers:
        node.replace_input_with(index, made)


def _named(place: Place, what: str) -> ir.Value:
    """What a value made of an activation is called; its shape is left to be found out."""
    return ir.Value(name=f"{place.name}_{what}", type=place.value.type)
