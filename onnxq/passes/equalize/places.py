"""The activations of a model whose channels can be scaled, and why others cannot."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model.sites import Weight
from onnxq.passes.equalize.labels import Labels
from onnxq.passes.equalize.makers import scale_output
from onnxq.passes.equalize.nodes import check_product, is_convolution
from onnxq.passes.equalize.walk import Products, Walk, row_axis, values_of
from onnxq.passes.step import Refusal
from onnxq.recipes import SITE_KINDS, SiteKind
from onnxq.statistics.reductions import Kind
from onnxq.statistics.requests import Request
from onnxq.statistics.views import Axis


@dataclass(frozen=True)
class Place:
    """An activation that products multiply with weights.

    Attributes:
        value: The activation.
        channels: How many it has.
        axis: On which axis, counted from the end; 1 is the second of a convolution's input.
        walk: What must be scaled with it; None where nothing can be.
        inserts: A Mul scales it for the products of `walk`, and no producer is touched.
        reason: Why nothing can be scaled, or None.
    """

    value: ir.Value
    channels: int
    axis: int
    walk: Walk | None
    inserts: bool = False
    reason: str | None = None

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.value.name or ""

    @property
    def where(self) -> str:
        """Where its scales go, in words."""
        if self.inserts:
            return "by a Mul"
        return "" if self.walk is None else f"in a {self.walk.kind} site"

    @property
    def is_direct(self) -> bool:
        """All its products read the activation itself, not another view of it."""
        return self.walk is not None and self.walk.rows.keys() == {
            node for node, _ in self.value.uses() if node in self.walk.rows
        }

    def request(self, *kinds: Kind) -> Request:
        """Ask about its channels."""
        return Request(self.name, self.channels, kinds, Axis(self.axis))


def products_of(weights: Sequence[Weight], graph: ir.Graph) -> Products:
    """Operators of the main graph that multiply an activation with a weight."""
    return {
        site.node: (weight, site)
        for weight in weights
        for site in weight.sites
        if not weight.in_function and not site.embedding and site.node.graph is graph
    }


def find_places(
    products: Products,
    wanted: Collection[str],
    *,
    kinds: Sequence[SiteKind] = SITE_KINDS,
    insert: bool = False,
) -> list[Place]:
    """All activations that one of the wanted weights is multiplied with, in the order of the weights.

    Args:
        products: From `products_of`.
        wanted: Names of weights.
        kinds: Where an activation may stand.
        insert: Scale with a Mul what no producer can scale.
    """
    found: dict[ir.Value, Place] = {}
    covered: set[ir.Node] = set()
    for node, value in values_of(products):
        weight, site = products[node]
        if weight.name not in wanted or value in found or node in covered:
            continue
        if len(weight.shape) > 2 and not is_convolution(site):
            found[value] = Place(value, 0, -1, None, reason="a stack of matrices is multiplied with it")
            continue
        place = _place(products, node, value, kinds, insert=insert)
        covered.update(place.walk.rows if place.walk else ())
        found[value] = place
    return list(found.values())


def _place(products: Products, node: ir.Node, value: ir.Value, kinds: Sequence[SiteKind], *, insert: bool) -> Place:
    weight, site = products[node]
    from_end = row_axis(weight, site, value)
    channels, axis = _channels(node, weight, site.layout.reduction), from_end if from_end in (-1, -2) else 1
    labels = np.arange(channels).reshape(-1, *(1,) * (-from_end - 1))
    walk = Walk(products, channels, scale_output)
    try:
        walk.visit(value, labels)
    except Refusal as refusal:
        reason = str(refusal)
    else:
        if walk.kind in kinds:
            return Place(value, channels, axis, walk)
        return Place(value, channels, axis, None, reason=f"a {walk.kind} site, which the step leaves out")
    if insert:
        return _inserted(products, value, channels, axis, labels)
    return Place(value, channels, axis, None, reason=reason)


def _inserted(products: Products, value: ir.Value, channels: int, axis: int, labels: Labels) -> Place:
    """All products that read a value directly, behind a Mul."""
    walk, reason = Walk(products, channels, scale_output), ""
    for node, index in value.uses():
        if node in products and index == 1 - min(products[node][1].index, 1):
            try:
                check_product(node, products[node][0])
                walk.read(node, index, labels)
            except Refusal as refusal:
                reason = str(refusal)
    if not walk.rows:
        return Place(value, channels, axis, None, reason=reason)
    return Place(value, channels, axis, walk, inserts=True)


def _channels(node: ir.Node, weight: Weight, reduction: int) -> int:
    """Of the activation: a convolution with groups has so many times the channels of its weight."""
    group = node.attributes.get("group")
    count = weight.shape[reduction]
    return count if group is None or node.op_type == "ConvTranspose" else count * group.as_int()
