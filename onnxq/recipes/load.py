"""Recipes from YAML: every mistake is named with file, line, key and the nearest valid name."""

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from onnxq.errors import RecipeError, nearest, reason
from onnxq.recipes.activation import ActivationSpec
from onnxq.recipes.cache import CachePart, CacheSpec
from onnxq.recipes.recipe import Match, Recipe, Rule
from onnxq.recipes.spec import QuantSpec
from onnxq.recipes.steps import STEPS

_MAX_BYTES = 1 << 20
_Place = tuple[str | int, ...]


def preset_names() -> list[str]:
    """Names of the recipes that come with onnxq."""
    return sorted(path.name.removesuffix(".yaml") for path in _presets())


def load_recipe(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by preset name or YAML file; one without a name is called as its file.

    Raises:
        RecipeError: No such preset or file, or a mistake in it; the message says where and what would be valid.
    """
    if isinstance(recipe, Recipe):
        return _extended(recipe)
    if not isinstance(recipe, str | os.PathLike):
        raise RecipeError(
            f"a recipe is the name of a preset, the path of a .yaml file or a Recipe, not {type(recipe).__name__}"
        )
    for path in _presets():
        if path.name == f"{recipe}.yaml":
            return parse_recipe(path.read_text("utf-8"), source=f"preset {recipe}")
    path = Path(recipe)
    try:
        if path.suffix not in (".yaml", ".yml") and not path.exists():
            raise RecipeError(
                f"no preset '{recipe}'; {nearest(str(recipe), preset_names())}, or a path of a .yaml file"
            )
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
        if len(text) > _MAX_BYTES:
            raise RecipeError(f"{path}: a recipe of more than {_MAX_BYTES} bytes is not read")
        parsed = parse_recipe(text.decode("utf-8"), source=str(path))
        return parsed if "name" in parsed.model_fields_set else parsed.model_copy(update={"name": path.stem})
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {reason(error)}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except ValueError:
        raise RecipeError(f"{str(recipe)!r} is not a path") from None


def parse_recipe(text: str, source: str = "recipe") -> Recipe:
    """A recipe from YAML text; `source` is what errors call it."""
    lines: dict[_Place, int] = {}
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise RecipeError(f"{source}: empty; a recipe has 'rules:'")
        _index(root, (), lines, source, depth=0)
        tree = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{source}:{line}: not YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{source}:{line}: not YAML: {error.reason}") from None
    except RecursionError:
        raise RecipeError(f"{source}:1: nested too deeply for a recipe") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(tree, dict):
        raise RecipeError(f"{source}:1: a recipe is a mapping with 'rules:', not a {type(tree).__name__}")
    try:
        return _extended(Recipe.model_validate(tree), f"{source}:{lines.get(('extends',), 1)}")
    except ValidationError as error:
        # A misspelt key also makes the right one missing: the misspelling is the mistake.
        worst = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise RecipeError(_explain(worst, lines, source)) from None


class _Loader(yaml.SafeLoader):
    """YAML whose numbers and dates that Python refuses are mistakes with a place."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See `yaml.constructor.BaseConstructor`."""
        try:
            return super().construct_object(node, deep=deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def _presets() -> Iterator[Any]:
    return (path for path in (resources.files("onnxq.recipes") / "presets").iterdir() if path.name.endswith(".yaml"))


def _extended(recipe: Recipe, source: str = "recipe") -> Recipe:
    """Put the steps and rules of the preset it extends before its own."""
    if recipe.extends is None:
        return recipe
    if recipe.extends not in preset_names():
        raise RecipeError(f"{source}: extends: no preset '{recipe.extends}'; {nearest(recipe.extends, preset_names())}")
    base = load_recipe(recipe.extends)
    joined = {
        "equalize": (*base.equalize, *recipe.equalize),
        "rules": (*base.rules, *recipe.rules),
        "correct": tuple(dict.fromkeys((*base.correct, *recipe.correct))),
        "cache": recipe.cache or base.cache,
    }
    given = {name: getattr(recipe, name) for name in recipe.model_fields_set - {"extends"}}
    try:
        return Recipe(**given | joined)
    except ValidationError as error:
        raise RecipeError(f"{source}: {first_mistake(error)}") from None


def first_mistake(error: ValidationError) -> str:
    """What is wrong with a recipe that was not read from a file, in one sentence."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def _index(node: yaml.Node, place: _Place, lines: dict[_Place, int], source: str, depth: int) -> None:
    """Note the line of every key and item; refuse a key that stands twice, aliases without end, and deep nesting."""
    lines.setdefault(place, node.start_mark.line + 1)
    if depth > 20 or len(lines) > 100_000:
        raise RecipeError(f"{source}:{node.start_mark.line + 1}: nested too deeply or too long for a recipe")
    if isinstance(node, yaml.ScalarNode) and any("\ud800" <= character <= "\udfff" for character in node.value):
        raise RecipeError(f"{source}:{node.start_mark.line + 1}: not text: half of a surrogate pair")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in lines:
                raise RecipeError(f"{source}:{key.start_mark.line + 1}: key '{key.value}' stands twice")
            lines[inner] = key.start_mark.line + 1
            _index(value, inner, lines, source, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _index(item, (*place, number), lines, source, depth + 1)


def _explain(error: ErrorDetails, lines: dict[_Place, int], source: str) -> str:
    """One pydantic error as one sentence."""
    place, method = error["loc"], ""
    if place[:1] == ("equalize",) and len(place) > 2:
        # Pydantic tells there which of the steps it took it for.
        method, place = str(place[2]), place[:2] + place[3:]
    known = place
    while known not in lines:
        known = known[:-1]
    where = f"{source}:{lines[known]}"
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key '{path}'; {nearest(str(place[-1]), _keys_at(place[:-1], method))}"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = error["input"].get("method") if isinstance(error["input"], dict) else None
        what = "no method" if given is None else f"no such method {_shown(given)}"
        return f"{where}: {path}: {what}; {nearest(str(given or ''), STEPS)}"
    if error["type"] == "literal_error":
        valid = [word.strip("' ") for word in str(error.get("ctx", {})["expected"]).replace(" or ", ", ").split(", ")]
        return f"{where}: {path}: {_shown(error['input'])} is not valid; {nearest(str(error['input']), valid)}"
    message = error["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if error["type"] in ("model_type", "model_attributes_type"):
        message = f"Input should be a mapping, not {_shown(error['input'])}"
    return f"{where}: {path + ': ' if path else ''}{message}"


def _shown(value: object) -> str:
    """A value of the recipe, as far as it belongs in a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _keys_at(place: _Place, method: str) -> list[str]:
    """The keys that are valid at a place of the tree; `method` is that of a step."""
    if method:
        return list(STEPS[method].model_fields)
    models: dict[str, type[BaseModel]] = {
        "rules": Rule,
        "match": Match,
        "weight": QuantSpec,
        "activation": ActivationSpec,
        "cache": CacheSpec,
        "key": CachePart,
        "value": CachePart,
    }
    names = [part for part in place if isinstance(part, str)]
    return list((models[names[-1]] if names else Recipe).model_fields)
