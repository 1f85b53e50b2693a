"""What the user asks for: `Recipe`, `Rule`, `Match`, `QuantSpec` and `ActivationSpec`, from YAML or a preset's name."""

from onnxq.recipes.activation import ActivationSpec
from onnxq.recipes.load import load_recipe, parse_recipe, preset_names
from onnxq.recipes.recipe import Match, NonFinitePolicy, Recipe, Role, Rule
from onnxq.recipes.spec import Granularity, QuantSpec

__all__ = [
    "ActivationSpec",
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
