"""`equalize`: one step of a recipe on all activations of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx_ir.passes.common import ShapeInferencePass

from onnxq.model.load import Model
from onnxq.model.sites import Weight
from onnxq.passes.equalize.fold import Folding
from onnxq.passes.equalize.formulas import Seen, formula_of
from onnxq.passes.equalize.labels import Refusal
from onnxq.passes.equalize.places import find_places, products_of
from onnxq.passes.step import Change, Context, rewritten
from onnxq.recipes import ActivationSpec, QuantSpec


def equalize(model: Model, step: Any, context: Context) -> tuple[Model, list[Change]]:
    """Scale the activations of products that the recipe quantizes; of all products where it quantizes none.

    Args:
        model: Its graph is changed.
        step: A `Diagonal` of the recipe.
        context: What there is to go by.

    Returns:
        The new model, and what was done at each activation.

    Raises:
        UsageError, DataError, NonFiniteError, SessionError, OutputError: As `Context.statistics` and `rewritten`.
    """
    # Where channels go in a Reshape is told by shapes, and many exporters leave them out.
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model.ir)
    plan, weights = context.plan(model)
    products = products_of(weights, model.ir.graph)
    specs = {each.weight: each.spec for each in plan if each.spec is not None}
    places = find_places(products, _wanted(weights, specs, context), kinds=step.sites, insert=step.insert)
    formula, changes, name = formula_of(step), [], step.describe()
    requests = [place.request(*formula.kinds) for place in places if place.walk is not None]
    if not requests:
        return model, [Change(name, place.name, reason=place.reason) for place in places]
    statistics, folding = context.statistics(model, requests, name), Folding(products)
    solved = {node: spec for node, (weight, _) in products.items() if (spec := specs.get(weight.name)) is not None}
    for place in places:
        if place.walk is None:
            changes.append(Change(name, place.name, reason=place.reason))
            continue
        try:
            found = formula.find(step, Seen(place, statistics, folding, solved))
            if found.picked is None and np.ptp(found.scales) == 0 and found.scales[0] == 1:
                raise Refusal("its channels need no scales")
        except Refusal as refusal:
            changes.append(Change(name, place.name, reason=str(refusal)))
            continue
        folding.scale(place, found.scales)
        if found.picked is not None:
            folding.pick(place, found.picked)
        changes.append(Change(name, place.name, done=f"{place.where}{found.words}"))
    return rewritten(model, folding.write, context.folder), changes


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
