"""Rungs of a ladder of formats: a recipe for all weights in a few letters, and a recipe of its own for each weight."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from onnxq.errors import UsageError
from onnxq.formats import Integer, get_format
from onnxq.recipes.load import first_mistake, load_recipe, preset_names
from onnxq.recipes.recipe import Match, Recipe, Role, Rule
from onnxq.recipes.spec import Method, QuantSpec

LADDER = ("int2-g32", "int3-g128", "int3-g64", "int3-g32", "int4-g128", "int4-g32", "fp6", "int8")
"""From 2.6 to 8 bits a weight."""

_RUNG = re.compile(r"(?P<format>[a-z0-9_]+)(?:-g(?P<group>\d+)|-channel)")
# Integers of fewer bits lose much without zero points.
_SYMMETRIC_BITS = 6


def rung(name: str | Path | Recipe, method: Method | None = None) -> Recipe:
    """A recipe by the name of a preset, a YAML file, or a format with its groups.

    `int3-g64` is INT3 with zero points in groups of 64, `fp4_e2m1-g32` FP4 in groups of 32, `int8-channel` INT8 with
    one scale a channel. Scales of groups are fp16.

    Args:
        name: Or the recipe itself.
        method: In place of the methods that the recipe names, where it goes with the format.

    Raises:
        UsageError: There is no such format, or it does not go with its groups or with the method.
        RecipeError: There is no such preset or file, or a mistake in it.
    """
    match = _RUNG.fullmatch(name) if isinstance(name, str) and name not in preset_names() else None
    if match is None:
        recipe = load_recipe(name)
    else:
        recipe = Recipe(name=str(name), rules=(Rule(weight=_spec(str(name), match["format"], match["group"])),))
    return recipe if method is None else recipe.model_copy(update={"rules": tuple(_by(method, recipe))})


def _spec(name: str, kind_name: str, group: str | None) -> QuantSpec:
    """The spec of a format with its groups."""
    kind = get_format(kind_name)
    try:
        return QuantSpec(
            format=(kind.name,),
            granularity="group" if group else "channel",
            group_size=int(group) if group else None,
            scale="fp16" if group else "auto",
            symmetric=not isinstance(kind, Integer) or (kind.signed and kind.bits >= _SYMMETRIC_BITS),
        )
    except ValidationError as error:
        raise UsageError(f"'{name}': {first_mistake(error)}") from None


def _by(method: Method, recipe: Recipe) -> Iterable[Rule]:
    """The rules of a recipe with another method; where zero points are moved, only those that have some."""
    for rule in recipe.rules:
        if rule.weight is None or (method == "hqq" and rule.weight.symmetric):
            yield rule
        else:
            try:
                spec = QuantSpec.model_validate(rule.weight.model_dump() | {"method": method})
            except ValidationError as error:
                raise UsageError(f"method {method} does not go with '{recipe.name}': {first_mistake(error)}") from None
            yield rule.model_copy(update={"weight": spec})


def recipe_for(name: str, about: str, decided: Iterable[tuple[str, Role, QuantSpec | str]]) -> Recipe:
    """A recipe that says for each weight by its name how it is quantized, or why not.

    Args:
        name: Of the recipe.
        about: One line for people.
        decided: Weights, what they are for, and their spec or the reason why they stay float.
    """
    groups: dict[tuple[Role, QuantSpec | str], list[str]] = {}
    for weight, role, decision in decided:
        groups.setdefault((role, decision), []).append(glob.escape(weight))
    rules = []
    for (role, decision), names in groups.items():
        match = Match(name=tuple(names), role=(role,))
        rules.append(
            Rule(match=match, skip=decision) if isinstance(decision, str) else Rule(match=match, weight=decision)
        )
    return Recipe(name=name, about=about, rules=tuple(rules))
