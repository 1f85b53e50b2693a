"""Recipes as YAML files that `load_recipe` reads."""

from pathlib import Path

import yaml

from onnxq.model.replacing import write_text
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
    write_text(Path(path), recipe_text(recipe), "the recipe")
