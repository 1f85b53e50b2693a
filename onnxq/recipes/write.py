"""Recipes as YAML files that `load_recipe` reads."""

from pathlib import Path

import yaml

from onnxq.errors import OutputError
from onnxq.model.replacing import replacing
from onnxq.recipes.recipe import Recipe


def recipe_text(recipe: Recipe) -> str:
    """A recipe as YAML, without what is the default."""
    plain = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def write_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write a recipe; the file appears complete or not at all, and replaces one that stands there.

    Raises:
        OutputError: It cannot be written.
    """
    target = Path(path)
    try:
        with replacing(target) as partial:
            partial.write_text(recipe_text(recipe), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the recipe '{target}': {error.strerror}") from error
