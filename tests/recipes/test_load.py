"""Every mistake in a recipe is one `RecipeError` with file, line, key and what would be right."""

from pathlib import Path

import pytest

from onnxq.errors import RecipeError
from onnxq.formats import get_format
from onnxq.recipes import Match, QuantSpec, Recipe, Rule, load_recipe, parse_recipe, preset_names

ROUNDED = ["fp4", "fp6", "fp6-e2m3", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "none", "nvfp4"]
CALIBRATED = ["fp4-best", "fp6-gptq", "int2-best", "int3-best", "int4-gptq", "w4a4-fp", "w6a6-fp", "w8a8"]
EQUALIZED = ["int4-awq", "w4a4-rotate", "w8a8-smooth"]
PRESETS = sorted([*ROUNDED, *CALIBRATED, *EQUALIZED])
RULE = "rules:\n  - weight:\n      format: int4\n"

# (recipe, line, what the message says): unknown keys.
UNKNOWN = [
    ("rule: []", 1, "unknown key 'rule'; did you mean 'rules'?"),
    ("name: x\nRules: []", 2, "unknown key 'Rules'; did you mean 'rules'?"),
    ("rules: []\nnonfinite: skip", 2, "unknown key 'nonfinite'; did you mean 'non_finite'?"),
    ("rules: []\nextend: fp6", 2, "unknown key 'extend'; did you mean 'extends'?"),
    ("equalize:\n  - {method: smooth, alhpa: 1}", 2, "unknown key 'equalize[0].alhpa'; did you mean 'alpha'?"),
    ("zzz: 1", 1, "unknown key 'zzz'; valid: name, about, extends, equalize, rules, correct"),
    ("rules:\n  - weights: {format: int4}", 2, "unknown key 'rules[0].weights'; did you mean 'weight'?"),
    ("rules:\n  - skip: a\n  - skip: a\n    mach: {}", 4, "unknown key 'rules[1].mach'; did you mean 'match'?"),
    ("rules:\n  - skip: a\n    match:\n      names: x", 4, "'rules[0].match.names'; did you mean 'name'?"),
    ("rules:\n  - skip: a\n    match:\n      op_type: x", 4, "unknown key 'rules[0].match.op_type'"),
    ("rules:\n  - skip: a\n    match: {minsize: 4}", 3, "did you mean 'min_size'?"),
    ("rules:\n  - weight:\n      fromat: int4", 3, "unknown key 'rules[0].weight.fromat'; did you mean 'format'?"),
    ("rules:\n  - weight: {format: int4, groupsize: 32}", 2, "did you mean 'group_size'?"),
    ("rules:\n  - weight: {format: int4, scales: fp16}", 2, "did you mean 'scale'?"),
    ("rules:\n  - weight: {format: int4, asymmetric: true}", 2, "did you mean 'symmetric'?"),
    ("rules:\n  - weight: {format: int4, granularty: tensor}", 2, "did you mean 'granularity'?"),
    ("rules:\n  - activation: {format: int8, ranges: mse}", 2, "'rules[0].activation.ranges'; did you mean 'range'?"),
    ("x: &x {format: int4, bits: 4}\nrules:\n  - weight: *x", 1, "unknown key"),
    ("rules:\n  - weight:\n      <<: {format: int4}\n      sym: true", 4, "unknown key 'rules[0].weight.sym'"),
]
# Values that are not valid.
WRONG = [
    ("rules:\n  - weight: {format: int44}", 2, "rules[0].weight.format: no format 'int44'; did you mean 'int4'?"),
    ("rules:\n  - weight:\n      format: fp6_e2m2", 3, "no format 'fp6_e2m2'; did you mean 'fp6_e3m2'?"),
    ("rules:\n  - weight: {format: fp9_e4m4}", 2, "E4M4 is not a format here"),
    ("rules:\n  - weight: {format: fp8_e0m7}", 2, "E0M7 is not a format here"),
    ("rules:\n  - weight: {format: INT4}", 2, "no format 'INT4'"),
    ("rules:\n  - weight:\n      format: [int4, nf44]", 3, "no format 'nf44'; did you mean 'nf4'?"),
    ("rules:\n  - weight:\n      format: []", 3, "at least 1 item"),
    ("rules:\n  - weight:\n      format:", 3, "rules[0].weight.format: Input should be a list"),
    ("rules:\n  - weight:\n      format: {a: b}", 3, "rules[0].weight.format: Input should be a list"),
    ("rules:\n  - weight:\n      format: 4", 3, "rules[0].weight.format[0]: Input should be a valid string"),
    ("rules:\n  - weight: {granularity: channel}", 2, "rules[0].weight.format: Field required"),
    ("rules:\n  - weight: int4", 2, "rules[0].weight: Input should be a mapping, not 'int4'"),
    (
        RULE + "      granularity: groups",
        4,
        "rules[0].weight.granularity: 'groups' is not valid; did you mean 'group'?",
    ),
    (RULE + "      granularity: xyz", 4, "'xyz' is not valid; valid: tensor, channel, group"),
    (RULE + "      granularity: group", 2, "granularity 'group' needs group_size"),
    (RULE + "      group_size: 32", 2, "group_size 32 needs granularity: group"),
    (RULE + "      granularity: group\n      group_size: 1", 5, "rules[0].weight.group_size: Input should be greater"),
    (RULE + "      granularity: group\n      group_size: 0", 5, "greater than or equal to 2"),
    (RULE + "      granularity: group\n      group_size: -32", 5, "greater than or equal to 2"),
    (RULE + "      granularity: group\n      group_size: 99999999", 5, "less than or equal to 1048576"),
    (RULE + "      granularity: group\n      group_size: 1.5", 5, "valid integer"),
    (RULE + "      granularity: group\n      group_size: many", 5, "valid integer"),
    (RULE + "      granularity: group\n      group_size: .inf", 5, "rules[0].weight.group_size"),
    (RULE + f"      granularity: group\n      group_size: {'9' * 5000}", 5, "limit"),
    (RULE + "      scale: fp61", 4, "rules[0].weight.scale: no scale type 'fp61'; did you mean 'fp16'?"),
    (RULE + "      scale: 16", 4, "rules[0].weight.scale: Input should be a valid string"),
    (RULE + "      symmetric: maybe", 4, "rules[0].weight.symmetric: Input should be a valid boolean"),
    ("rules:\n  - weight: {format: fp6_e2m3, symmetric: false}", 2, "needs an integer format"),
    ("rules:\n  - weight: {format: [int4, nf4], symmetric: false}", 2, "needs an integer format"),
    ("rules:\n  - weight: {format: uint4}", 2, "set symmetric: false"),
    ("rules:\n  - weight: {format: int4, symmetric: false, scale: e8m0}", 2, "scale e8m0 needs symmetric: true"),
    ("rules:\n  - weight: {format: int4, symmetric: false, scale: e4m3}", 2, "scale e4m3 needs symmetric: true"),
    ("equalize: smooth", 1, "equalize: Input should be a list"),
    ("equalize: [smooth]", 1, "equalize[0]: Input should be a mapping, not 'smooth'"),
    ("equalize:\n  - {method: smoth}", 2, "equalize[0]: no such method 'smoth'; did you mean 'smooth'? valid: "),
    ("equalize:\n  - {alpha: 1}", 2, "equalize[0]: no method; valid: smooth"),
    ("equalize:\n  - method: smooth\n    alpha: 2", 3, "equalize[0].alpha[0]: Input should be less than or equal"),
    ("equalize:\n  - {method: smooth, sites: nrm}", 2, "sites[0]: 'nrm' is not valid; did you mean 'norm'?"),
    ("rules: fp6", 1, "rules: Input should be a list"),
    ("name: a\nrules:", 2, "rules: Input should be a list"),
    ("rules: {weight: {format: int4}}", 1, "rules: Input should be a list"),
    ("rules:\n  - int4", 2, "rules[0]: Input should be a mapping, not 'int4'"),
    ("rules:\n  - activation: {format: nf4}", 2, "rules[0].activation.format: nf4 cannot hold activations"),
    ("rules:\n  - activation: {format: fp4_e3m0}", 2, "fp4_e3m0 cannot hold activations: take an integer"),
    ("rules:\n  - activation: {format: int88}", 2, "no format 'int88'; did you mean 'int8'?"),
    ("rules:\n  - activation: {format: [int8]}", 2, "rules[0].activation.format: Input should be a valid string"),
    ("rules:\n  - activation: {format: int8, granularity: row}", 2, "'row' is not valid"),
    ("rules:\n  - activation: {format: int8, granularity: group}", 2, "'group' needs group_size"),
    ("rules:\n  - activation: {format: int8, group_size: 32}", 2, "group_size 32 needs granularity: group"),
    ("rules:\n  - activation: {format: int8, granularity: token, scale: e8m0}", 2, "goes with granularity: group"),
    (
        "rules:\n  - activation: {format: int8, granularity: group, group_size: 32, range: mse}",
        2,
        "granularity group measures what it meets",
    ),
    ("rules:\n  - activation: {format: int8, range: minmax}", 2, "'minmax' is not valid"),
    ("rules:\n  - activation: {format: int8, range: percentile, percentile: 1}", 2, "greater than 50"),
    ("rules:\n  - activation: {format: int8, granularity: token, range: mse}", 2, "leave out range: mse"),
    ("rules:\n  - activation: {format: int8, granularity: channel, range: mse}", 2, "takes range: absmax, not mse"),
    ("rules:\n  - activation: {format: uint8}", 2, "cannot hold negative values: set symmetric: false"),
    ("rules:\n  - activation: {format: fp6_e2m3, symmetric: false}", 2, "floats have no zero point"),
    ("rules:\n  - activation: {format: int8, range: dynamic}", 2, "needs format: uint8 and symmetric: false"),
    ("rules:\n  - skip: a\n    activation: {format: int8}", 2, "rules[0]: a rule says either"),
    ("rules:\n  - {}", 2, "rules[0]: a rule says either 'weight:'"),
    ("rules:\n  - skip: a\n    weight: {format: int4}", 2, "rules[0]: a rule says either"),
    ("rules:\n  - skip:", 2, "rules[0]: a rule says either"),
    ("rules:\n  - skip: 3", 2, "rules[0].skip: Input should be a valid string"),
    ("rules:\n  - skip: a\n    match:", 3, "rules[0].match: Input should be a mapping, not None"),
    (
        "rules:\n  - skip: a\n    match: {role: heads}",
        3,
        "rules[0].match.role[0]: 'heads' is not valid; did you mean 'head'?",
    ),
    ("rules:\n  - skip: a\n    match:\n      role: [head, lineer]", 4, "did you mean 'linear'?"),
    ("rules:\n  - skip: a\n    match: {role: []}", 3, "rules[0].match.role"),
    ("rules:\n  - skip: a\n    match: {name: []}", 3, "rules[0].match.name"),
    ("rules:\n  - skip: a\n    match: {name: 3}", 3, "rules[0].match.name"),
    ("rules:\n  - skip: a\n    match: {regex: '('}", 3, "rules[0].match.regex: '(' is not a regular expression"),
    ("rules:\n  - skip: a\n    match: {regex: [a, '*b']}", 3, "'*b' is not a regular expression: repetition operator"),
    (
        "rules:\n  - skip: a\n    match: {regex: '(?!a)b'}",
        3,
        "expression: look-around, including look-ahead and look-behind",
    ),
    ("rules:\n  - skip: a\n    match: {regex: 'a)|(?:b'}", 3, "'a)|(?:b' is not a regular expression: unopened group"),
    ("rules:\n  - skip: a\n    match: {regex: 'a{1000}{1000}'}", 3, "expression: Compiled regex exceeds size limit"),
    (
        "rules:\n  - skip: a\n    match: {op: MatMull}",
        3,
        "no operator 'MatMull' reads a weight; did you mean 'MatMul'?",
    ),
    ("rules:\n  - skip: a\n    match: {op: microsoft::FusedMatMul}", 3, "did you mean 'com.microsoft::FusedMatMul'?"),
    ("rules:\n  - skip: a\n    match: {op: [Conv, Relu]}", 3, "no operator 'Relu' reads a weight"),
    ("rules:\n  - skip: a\n    match: {min_size: -1}", 3, "rules[0].match.min_size: Input should be greater"),
    ("rules:\n  - skip: a\n    match: {min_size: 9, max_size: 8}", 3, "max_size 8 is less than min_size 9"),
    ("rules: []\nnon_finite: ignore", 2, "non_finite: 'ignore' is not valid; valid: error, skip, clamp"),
    ("rules: []\nnon_finite: Skip", 2, "non_finite: 'Skip' is not valid; did you mean 'skip'?"),
    ("rules: []\nextends: fp7", 2, "extends: no preset 'fp7'; did you mean 'fp6'?"),
    ("extends: [fp6]", 1, "extends: Input should be a valid string"),
    ("rules: []\nname: 2020-10-05", 2, "name: Input should be a valid string"),
    ("name: [a]", 1, "name: Input should be a valid string"),
    ("1: 2", 1, "Keys should be strings"),
    ("rules:\n  - skip: a\n    match: {on: 1}", 3, "Keys should be strings"),
    ("rules: []\nnon_finite: " + "x" * 5000, 2, "x..."),
]
# Not YAML, or not this kind of YAML.
BROKEN = [
    ("", None, "empty"),
    ("# nothing", None, "empty"),
    ("- a", 1, "a recipe is a mapping with 'rules:', not a list"),
    ("fp6", 1, "not a str"),
    ("rules: []\nname: a\nrules: []", 3, "key 'rules' stands twice"),
    ("rules:\n  - skip: a\n    skip: b", 3, "key 'skip' stands twice"),
    ("rules:\n\t- skip: a", 2, "not YAML"),
    ("rules: [", 1, "not YAML"),
    ("rules: []\nname: 'a", 2, "not YAML"),
    ("rules: *nothing", 1, "undefined alias"),
    ("rules: []\n---\nrules: []", 2, "another document"),
    ("rules: !!python/object/apply:os.system [ls]", 1, "could not determine a constructor"),
    ("rules: []\nname: !!binary a", 2, "not YAML"),
    ("rules: []\nname: 2020-13-45", 2, "month"),
    ("? [a]\n: 2", 1, "not YAML"),
    ("rules: []\nname: \0", 2, "special characters"),
    ('rules: []\nname: "\\ud800"', 2, "surrogate"),
    ("rules: &a [*a]", 1, "too deeply"),
    ("rules: &a {rules: *a}", 1, "too deeply"),
    ("rules: " + "[" * 400_000, 1, "too deeply"),
    ("{a: " * 2_000 + "}" * 2_000, 1, "too deeply"),
    ("name: " + "  - " * 30 + "a", 1, ""),
]


@pytest.mark.parametrize(("text", "line", "message"), UNKNOWN + WRONG + BROKEN)
def test_mistake_is_named(text: str, line: int | None, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, source="my.yaml")
    shown = str(caught.value)
    assert shown.startswith("my.yaml:" if line is None else f"my.yaml:{line}: ")
    assert message in shown
    assert len(shown) < 600


def test_enough_mistakes_are_tried() -> None:
    assert len(UNKNOWN + WRONG + BROKEN) >= 60


def test_aliases_that_multiply_are_refused_at_once() -> None:
    text = "l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]\n"
    # Written out they are 10^9 elements, for which there are neither hours nor memory.
    with pytest.raises(RecipeError, match="too long"):
        parse_recipe(text)


def test_alias_and_merge_mean_what_yaml_says() -> None:
    recipe = parse_recipe("""
    rules:
      - weight: &base {format: int4, granularity: group, group_size: 32}
      - match: {op: Conv}
        weight: *base
      - match: {op: Gemm}
        weight: {<<: *base, group_size: 64}
    """)
    assert [rule.weight.group_size for rule in recipe.rules if rule.weight] == [32, 32, 64]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    assert recipe.non_finite == "error"
    assert [get_format(each) for rule in recipe.rules if rule.weight for each in rule.weight.format] or name == "none"


def test_presets_are_these() -> None:
    assert preset_names() == PRESETS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp7", "no preset 'fp7'; did you mean 'fp6'?"),
        ("FP6", "no preset 'FP6'"),
        ("int-4", "did you mean 'int4'?"),
        ("nothing.yaml", "cannot read recipe nothing.yaml: No such file"),
        ("", "cannot read recipe"),
        ("a\0b.yaml", "is not a path"),
        ("a\0b", "no preset"),
        ("x" * 5000, "cannot read recipe"),
    ],
)
def test_name_that_is_none(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(("recipe", "kind"), [({"rules": []}, "dict"), (None, "NoneType")])
def test_what_names_no_recipe(recipe: object, kind: str) -> None:
    with pytest.raises(RecipeError, match=f"a recipe is the name of a preset, .* not {kind}$"):
        load_recipe(recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rules: []\nname: \xff", "not UTF-8 text (byte 16)"),
        ("rules: []".encode("utf-16"), "not UTF-8"),
        (b"#" * ((1 << 20) + 1), "more than 1048576 bytes"),
        (b"rules: [\n", "r.yaml:2: not YAML"),
        (b"rules:\n  - skp: a\n", "r.yaml:2: unknown key 'rules[0].skp'; did you mean 'skip'?"),
    ],
)
def test_file_that_is_no_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert message in str(caught.value)
    assert "r.yaml" in str(caught.value)


def test_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)


def test_file_without_suffix_and_with_a_bom(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("name: x\nrules: []\n")
    assert load_recipe(tmp_path / "plain").name == "x"
    (tmp_path / "bom.yml").write_text("\ufeffname: y\nrules: []\n", "utf-8")
    assert load_recipe(str(tmp_path / "bom.yml")).name == "y"


def test_extends_puts_the_preset_first() -> None:
    recipe = parse_recipe("""
    extends: fp6
    non_finite: skip
    rules:
      - match: {name: '*down*'}
        weight: {format: int8}
    """)
    assert recipe.rules[:1] == load_recipe("fp6").rules
    assert recipe.rules[1].weight == QuantSpec(format=("int8",))
    assert recipe.extends is None
    assert recipe.non_finite == "skip"


def test_recipe_in_python_is_extended_too() -> None:
    recipe = Recipe(extends="int4", rules=(Rule(match=Match(op=("Conv",)), skip="slow"),))
    assert len(load_recipe(recipe).rules) == 2
    with pytest.raises(RecipeError, match="no preset 'int44'; did you mean 'int4'"):
        load_recipe(Recipe(extends="int44"))


def test_recipe_survives_json() -> None:
    for name in PRESETS:
        recipe = load_recipe(name)
        assert Recipe.model_validate_json(recipe.model_dump_json(exclude_defaults=True)) == recipe
