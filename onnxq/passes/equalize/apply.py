"""`equalize`: one step of a recipe on all activations of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.model.load import Model
from onnxq.model.shapes import infer_shapes
from onnxq.model.sites import Weight
from onnxq.passes.equalize.fold import Folding
from onnxq.passes.equalize.formulas import Seen, formula_of
from onnxq.passes.equalize.places import Place, find_places, products_of
from onnxq.passes.step import Change, Context, Refusal, rewritten
from onnxq.recipes import ActivationSpec, QuantSpec
from onnxq.statistics.requests import grouped
from onnxq.statistics.statistics import Statistics

# Of answers that are held at a time, in float32: four inputs of 11,008 channels, or sixteen of 4096, with their X'X.
BUDGET_BYTES = 2 << 30


def equalize(model: Model, step: Any, context: Context) -> tuple[Model, list[Change]]:
    """Scale the activations of products that the recipe quantizes; of all products where it quantizes none.

    Args:
        model: Its graph is changed.
        step: A `Diagonal` of the recipe.
        context: What there is to go by.

    Returns:
        The new model, and what was done at each activation.

    Raises:
        ModelError: A constant would leave the range of its type.
        UsageError, DataError, NonFiniteError, SessionError, OutputError: As `Context.statistics` and `rewritten`.
    """
    # Where channels go in a Reshape is told by shapes, and many exporters leave them out.
    infer_shapes(model.ir)
    plan, weights = context.plan(model)
    products = products_of(weights, model.ir.graph)
    specs = {each.weight: each.spec for each in plan if each.spec is not None}
    places = find_places(products, _wanted(weights, specs, context), kinds=step.sites, insert=step.insert)
    solved = {node: spec for node, (weight, _) in products.items() if (spec := specs.get(weight.name)) is not None}
    folding, changes = Folding(products), []
    kinds = formula_of(step).kinds

    def size_bytes(place: Place) -> int:
        return 0 if place.walk is None else place.request(*kinds).size_bytes

    # Each group takes a pass over the data.
    for group in grouped(places, size_bytes, BUDGET_BYTES):
        requests = [place.request(*kinds) for place in group if place.walk is not None]
        statistics = context.statistics(model, requests, step.describe()) if requests else Statistics({})
        changes += [_scaled(place, step, Seen(place, statistics, folding, solved)) for place in group]
    return rewritten(model, folding.write, context.folder), changes


def _scaled(place: Place, step: Any, seen: Seen) -> Change:
    """Scale one activation, if it can be and needs it."""
    name = step.describe()
    if place.walk is None:
        return Change(name, place.name, reason=place.reason)
    try:
        found = formula_of(step).find(step, seen)
        if found.picked is None and np.ptp(found.scales) == 0 and found.scales[0] == 1:
            raise Refusal("its channels need no scales")
    except Refusal as refusal:
        return Change(name, place.name, reason=str(refusal))
    seen.folding.scale(place, found.scales)
    if found.picked is not None:
        seen.folding.pick(place, found.picked)
    return Change(name, place.name, done=f"{place.where}{found.words}")


def _wanted(weights: Sequence[Weight], specs: Mapping[str, QuantSpec], context: Context) -> set[str]:
    """Weights whose products are scaled: those that are quantized or read a quantized activation."""
    recipe = context.recipe
    if not any(rule.weight or rule.activation for rule in recipe.rules):
        return {weight.name for weight in weights if weight.role == "linear"}
    reads = {
        weight.name
        for weight in weights
        if context.selection.refusal(weight) is None
        and isinstance(
            recipe.decide_activation(names=weight.names, op=weight.op, role=weight.role, size=weight.size),
            ActivationSpec,
        )
    }
    return {*specs, *reads}
