"""What the user asks for: `Recipe`, `Rule`, `Match` and `QuantSpec`, from YAML or a preset's name."""

from onnxq.recipes.cache import CachePart, CacheSpec
from onnxq.recipes.load import load_recipe, parse_recipe, preset_names
from onnxq.recipes.recipe import Match, NonFinitePolicy, Recipe, Role, Rule
from onnxq.recipes.spec import Granularity, QuantSpec

__all__ = [
    "CachePart",
    "CacheSpec",
    "Granularity",
    "Match",
    "NonFinitePolicy",
    "QuantSpec",
    "Recipe",
    "Role",
    "Rule",
    "load_recipe",
    "parse_recipe",
    "preset_names",
]
