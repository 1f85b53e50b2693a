import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import OutputError, RecipeError, UsageError
from onnxq.recipes import QuantSpec, load_recipe
from onnxq.recipes.load import parse_recipe
from onnxq.recipes.rungs import LADDER, recipe_for, rung
from onnxq.recipes.write import recipe_text, write_recipe


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("int3-g64", {"format": "int3", "granularity": "group", "group_size": 64, "scale": "fp16", "symmetric": False}),
        ("fp4_e2m1-g16", {"format": "fp4_e2m1", "granularity": "group", "group_size": 16, "scale": "fp16"}),
        ("int8-channel", {"format": "int8"}),
        ("uint4-channel", {"format": "uint4", "symmetric": False}),
        ("uint8-channel", {"format": "uint8", "symmetric": False}),
    ],
)
def test_a_rung_is_a_format_with_its_groups(name, wanted):
    (rule,) = rung(name).rules
    assert rule.weight == QuantSpec(**wanted)


def test_presets_files_and_recipes_are_rungs_as_they_are(tmp_path):
    (tmp_path / "mine.yaml").write_text("rules: [{weight: {format: int5}}]")
    assert rung("fp4").rules == load_recipe("fp4").rules
    assert rung(tmp_path / "mine.yaml").rules == rung(str(tmp_path / "mine.yaml")).rules
    recipe = load_recipe("int4-gptq")
    assert rung(recipe) == recipe


def test_a_method_takes_the_place_of_the_recipe_s_where_it_goes_with_the_format():
    assert [rule.weight.method for rule in rung("int3-g64", "hqq").rules] == ["hqq"]
    assert [rule.weight.method for rule in rung("fp4", "gptq").rules] == ["gptq"]
    assert rung("fp4", "hqq") == load_recipe("fp4")


def test_the_ladder_climbs():
    bits = {"int2": 2, "int3": 3, "int4": 4, "fp6": 6, "int8": 8}
    widths = [bits[name.partition("-")[0]] for name in LADDER if rung(name).rules]
    assert widths == sorted(widths)


@pytest.mark.parametrize(("name", "error"), [("int33-g64", UsageError), ("nothing", RecipeError)])
def test_what_is_no_rung_is_named(name, error):
    with pytest.raises(error, match=name.partition("-")[0]):
        rung(name)


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("int4-g1", None, "'int4-g1': Input should be greater than or equal to 2"),
        ("binary-g32", None, "'binary-g32': binary weights need a few in INT8"),
        ("int4-g32", "kmeans", "method kmeans does not go with 'int4-g32': method kmeans learns tables"),
        ("fp6", "pb-llm", "method pb-llm does not go with 'fp6'"),
    ],
)
def test_what_does_not_go_together_is_named(name, method, words):
    with pytest.raises(UsageError, match=words):
        rung(name, method)


NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=12)
DECISIONS = st.sampled_from([*(rung(name).rules[0].weight for name in LADDER), "it is too dear"])


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(["linear", "embedding", "head"]), DECISIONS), min_size=1))
def test_a_recipe_made_of_decisions_decides_so_whatever_the_names_are(decided):
    made = recipe_for("mixed", "", [(name, role, decision) for name, (role, decision) in decided.items()])
    read = parse_recipe(recipe_text(made))
    assert read == made
    for name, (role, decision) in decided.items():
        assert read.decide(names=(name,), op="MatMul", role=role, size=10) == decision


def test_a_recipe_is_written_whole_or_not_at_all(tmp_path):
    recipe = rung("fp4")
    write_recipe(recipe, tmp_path / "a.yaml")
    assert load_recipe(tmp_path / "a.yaml") == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
    with pytest.raises(OutputError, match="missing"):
        write_recipe(recipe, tmp_path / "missing" / "a.yaml")
