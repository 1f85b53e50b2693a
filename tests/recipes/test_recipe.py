"""The last rule that matches decides."""

import pytest
from pydantic import ValidationError

from onnxq.recipes import Match, QuantSpec, Recipe, Rule, load_recipe, parse_recipe, preset_names
from onnxq.recipes.write import recipe_text

INT4, INT8 = QuantSpec(format=("int4",)), QuantSpec(format=("int8",))
NAMES = ("model.layers.0.mlp.down_proj.weight", "/model/layers.0/mlp/down_proj/MatMul")


def decide(rules: str, *, names: tuple[str, ...] = NAMES, op: str = "MatMul", role="linear", size: int = 4096):
    return parse_recipe(rules).decide(names=names, op=op, role=role, size=size)


def matches(*, names: tuple[str, ...] = NAMES, **conditions):
    return Match(**conditions).matches(names=names, op="MatMul", role="linear", size=4096)


def test_last_match_wins() -> None:
    rules = """
    rules:
      - weight: {format: int4}
      - match: {name: "*down_proj*"}
        weight: {format: int8}
      - match: {name: "*up_proj*"}
        skip: for another
    """
    assert decide(rules) == INT8
    assert decide(rules, names=("up_proj",)) == "for another"
    assert decide(rules, names=("q",)) == INT4


def test_more_rules_win() -> None:
    recipe = Recipe(rules=(Rule(weight=INT4),)).with_rules(Rule(match=Match(name=("a",)), skip="no"))
    assert recipe.decide(names=("a",), op="MatMul", role="linear", size=1) == "no"
    assert recipe.decide(names=("b",), op="MatMul", role="linear", size=1) == INT4


def test_nothing_matches() -> None:
    assert decide("rules: []") == "no rule matches"
    assert decide("rules:\n- match: {name: x}\n  skip: y") == "no rule matches"


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_embeddings_and_heads_are_off_until_asked(role: str) -> None:
    assert (
        decide("rules:\n- weight: {format: int4}", role=role)
        == f"{role}: off unless a rule asks for it with role: {role}"
    )
    assert decide("rules:\n- weight: {format: int4}\n  match: {name: '*'}", role=role).startswith(role)
    assert decide(f"rules:\n- weight: {{format: int4}}\n  match: {{role: {role}}}", role=role) == INT4
    assert decide(f"rules:\n- weight: {{format: int4}}\n  match: {{role: {role}}}") == "no rule matches"
    assert decide("rules:\n- weight: {format: int4}\n  match: {role: [linear, embedding, head]}", role=role) == INT4


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, True),
        ({"name": "*down_proj*"}, True),
        ({"name": "model.layers.0.mlp.down_proj.weight"}, True),
        ({"name": "down_proj"}, False),
        ({"name": "*DOWN_PROJ*"}, False),
        ({"name": "/model/*"}, True),
        ({"name": "model.layers.?.mlp*"}, True),
        ({"name": "model.layers.[1-9].*"}, False),
        ({"name": "model.layers.[!1-9].*"}, True),
        ({"name": ["a", "*.weight"]}, True),
        ({"regex": r"model\.layers\.\d+\.mlp\..*"}, True),
        ({"regex": r"layers"}, False),
        ({"regex": [r"x", r".*layers.*"]}, True),
        ({"name": "nothing", "regex": ".*"}, True),
        ({"op": "MatMul"}, True),
        ({"op": ["Gemm", "MatMul"]}, True),
        ({"op": "Gemm"}, False),
        ({"op": "com.microsoft::FusedMatMul"}, False),
        ({"name": "*", "op": "Gemm"}, False),
        ({"min_size": 4096}, True),
        ({"min_size": 4097}, False),
        ({"max_size": 4096}, True),
        ({"max_size": 4095}, False),
        ({"min_size": 4096, "max_size": 4096, "name": "*weight", "op": "MatMul", "role": "linear"}, True),
    ],
)
def test_conditions(conditions: dict, expected: bool) -> None:
    assert matches(**conditions) is expected


def test_a_node_without_a_name_matches_by_its_weight_alone() -> None:
    assert matches(names=("w",), name="w")
    assert not matches(names=("w",), name="?*MatMul*")


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a|a)*b", "(a?){50}a{50}b", ".*.*.*.*.*b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    """Backtracking would take longer than there is time."""
    assert not matches(names=("a" * 5000,), regex=pattern)


def test_specs_describe_themselves() -> None:
    assert QuantSpec(format="int4").describe() == "int4, per channel"
    spec = QuantSpec(format=["fp6_e2m3", "fp6_e3m2"], granularity="group", group_size=32, scale="e8m0")
    assert spec.describe() == "fp6_e2m3|fp6_e3m2, groups of 32, e8m0 scales"
    assert (
        QuantSpec(format="uint8", granularity="tensor", symmetric=False).describe() == "uint8, one scale, zero points"
    )


def test_recipes_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().name = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        INT4.scale = "fp16"  # type: ignore[misc]


@pytest.mark.parametrize("name", preset_names())
def test_a_recipe_as_yaml_is_the_same_recipe(name):
    recipe = load_recipe(name)
    assert parse_recipe(recipe_text(recipe)) == recipe
