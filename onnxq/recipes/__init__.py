"""What the user asks for: `Recipe`, `Step`, `Rule` and what they hold, from YAML or a preset's name."""

from onnxq.recipes.activation import ActivationSpec, is_roundable
from onnxq.recipes.cache import CachePart, CacheSpec
from onnxq.recipes.load import load_recipe, parse_recipe, preset_names
from onnxq.recipes.recipe import Correction, Match, NonFinitePolicy, Recipe, Role, Rule
from onnxq.recipes.spec import Granularity, QuantSpec
from onnxq.recipes.steps import SITE_KINDS, STEPS, Aweq, Awq, Disassemble, Rotate, Shift, SiteKind, Smooth, Step

__all__ = [
    "SITE_KINDS",
    "STEPS",
    "Aweq",
    "Awq",
    "Disassemble",
    "Shift",
    "ActivationSpec",
    "CachePart",
    "CacheSpec",
    "Correction",
    "Granularity",
    "Match",
    "NonFinitePolicy",
    "QuantSpec",
    "Recipe",
    "Role",
    "Rotate",
    "Rule",
    "SiteKind",
    "Smooth",
    "Step",
    "load_recipe",
    "is_roundable",
    "parse_recipe",
    "preset_names",
]
