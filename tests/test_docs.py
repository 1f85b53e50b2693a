"""What README.md and docs/ say: examples run, links lead somewhere, tables and numbers are those of the code."""

import importlib.util
import re
import shlex
import shutil
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import errors
from onnxq.cli.app import run
from onnxq.errors import RecipeError
from onnxq.formats import NAMED_FORMATS, SCALE_TYPES, Integer, Minifloat, get_format
from onnxq.formats.tiled import TILED_FORMATS
from onnxq.functions import DOMAIN, functions, operator_suffix
from onnxq.methods.solve import SOLVERS
from onnxq.recipes import (
    STEPS,
    ActivationSpec,
    CachePart,
    CacheSpec,
    Match,
    QuantSpec,
    Recipe,
    Rule,
    is_roundable,
    load_recipe,
    parse_recipe,
    preset_names,
)
from onnxq.recipes.steps import ROTATION_SITES, Diagonal, Rotate

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("samples/*.md"))
}
CODE_LM, DIGITS = ROOT / "samples" / "code_lm", ROOT / "samples" / "digits"
WINDOWS = 2
# Three small weights that read one tensor.
FIRST_ATTENTION = ("node_linear", "node_linear_1", "node_linear_2")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(page), re.DOTALL | re.MULTILINE)


def table(page: Path, *first_columns: str) -> list[list[str]]:
    """The rows of every table whose header starts so, each a list of cells."""
    lines, rows = text_of(page).splitlines(), []
    starts = [at for at, line in enumerate(lines) if line.startswith("| " + " | ".join(first_columns) + " |")]
    assert starts, f"{page.name} has no table of {first_columns}"
    for start in starts:
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def calibrated_presets() -> set[str]:
    """Presets that are refused without data."""

    def needs_data(rule: Rule) -> bool:
        static = rule.activation is not None and not rule.activation.is_dynamic
        return static or (rule.weight is not None and SOLVERS[rule.weight.method].hessian == "needs")

    recipes = {name: load_recipe(name) for name in preset_names()}
    return {name for name, each in recipes.items() if each.equalize or any(map(needs_data, each.rules))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_with_cache: Callable[[str], Path]) -> Path:
    """Where the examples of a page run."""
    for name, source in {
        "model.onnx": CODE_LM / "model.onnx",
        "tokenizer.json": CODE_LM / "tokenizer.json",
        "classifier.onnx": DIGITS / "vit.onnx",
        "test.npz": DIGITS / "test.npz",
        "calibration.npy": CODE_LM / "calibration.npy",
        "with_past.onnx": sample_with_cache("plain"),
    }.items():
        shutil.copyfile(source, tmp_path / name)
    np.save(tmp_path / "heldout.npy", np.load(CODE_LM / "heldout.npy")[: WINDOWS * 256])
    (tmp_path / "mine.yaml").write_text(blocks(DOCS / "recipes.md", "yaml")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if blocks(path, "python")])
def test_python_examples_run(page: str, folder: Path) -> None:
    scope: dict[str, object] = {}
    for number, code in enumerate(blocks(PAGES[page], "python")):
        exec(compile(code, f"{page}, example {number}", "exec"), scope)  # noqa: S102


@pytest.mark.parametrize("page", [name for name, path in PAGES.items() if "\n$ onnxq " in text_of(path)])
def test_commands_run(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for block in blocks(PAGES[page], "console") for line in block.splitlines() if line[:2] == "$ "]
    assert commands
    for command in commands:
        program, *arguments = shlex.split(command[2:])
        assert program == "onnxq"
        assert run(arguments) == 0, (command, capsys.readouterr().err)


def test_the_two_commands_stand_first() -> None:
    first, second, *_ = blocks(README, "console")
    assert first == "pip install '.[cpu]' && onnxq demo\n"
    assert second == "pip install '.[cpu,test]' && pytest\n"
    assert len(text_of(README).splitlines()) < 150


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(path)):
        if "://" not in link:
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_tests_exist(page: str) -> None:
    for name in re.findall(r"`((?:tests|tools|onnxq|docs|samples)/[\w/.-]+)(?:::\w+)?`", text_of(PAGES[page])):
        if "NAME" not in name:
            assert (ROOT / name).exists(), name
    for file, test in re.findall(r"`(tests/[\w/.]+)::(\w+)`", text_of(PAGES[page])):
        assert f"def {test}(" in text_of(ROOT / file), test


@pytest.mark.parametrize("recipe", [block for path in PAGES.values() for block in blocks(path, "yaml")])
def test_recipes_are_valid(recipe: str) -> None:
    assert parse_recipe(recipe).rules


def test_recipes_page_has_every_key_and_preset() -> None:
    page = DOCS / "recipes.md"
    keys = [cells[0].strip("`") for cells in table(page, "key")]
    models = (Recipe, Rule, Match, QuantSpec)
    activation = [cells[0].strip("`") for cells in table(DOCS / "activations.md", "key")]
    assert activation == list(ActivationSpec.model_fields)
    assert sorted(keys) == sorted(field for model in models for field in model.model_fields)
    cache = [cells[1].strip("`") for cells in table(DOCS / "language_models.md", "part", "key")]
    assert cache == list(CachePart.model_fields)
    assert named(table(DOCS / "language_models.md", "part", "key")[0][0]) == list(CacheSpec.model_fields)
    steps = {name: each for name, each in STEPS.items() if issubclass(each, Diagonal)}
    assert {cells[0].strip("`") for cells in table(DOCS / "equalize.md", "method")} == steps.keys()
    fields = {field for each in steps.values() for field in each.model_fields} - {"method"}
    assert {cells[0].strip("`") for cells in table(DOCS / "equalize.md", "key")} == fields
    options = [cells[0].strip("`") for cells in table(DOCS / "equalize.md", "option")]
    assert sorted(["method", *options]) == sorted(Rotate.model_fields)
    sites = [cells[0].strip("`") for cells in table(DOCS / "equalize.md", "site", "rotated is")]
    assert sites == list(ROTATION_SITES)
    rows = {cells[0].strip("`"): cells for cells in table(page, "recipe", "formats")}
    assert rows.keys() == set(preset_names())
    for name, (_, formats, share, scale, method) in rows.items():
        specs = [rule.weight for rule in load_recipe(name).rules]
        if not specs:
            assert name == "none"
            continue
        (spec,) = specs
        assert spec is not None
        assert named(formats) == list(spec.format), name
        assert share == (str(spec.group_size) if spec.group_size else spec.granularity), name
        assert (named(scale) or ["auto"]) == [spec.scale], name
        assert ("zero points" in formats) == (not spec.symmetric), name
        assert method.strip("`") == spec.method, name
    methods = {cells[0].strip("`"): cells for cells in table(page, "method")}
    assert {name: cells[1] for name, cells in methods.items()} == {
        name: {"needs": "needed", "uses": "used", "no": "not used"}[each.hessian] for name, each in SOLVERS.items()
    }
    assert {name for cells in table(README, "preset") for name in named(cells[0])} == set(preset_names())


@pytest.mark.parametrize(
    "rule",
    [
        '- match: {nmae: "*mlp*"}\n    weight: {format: int4}',
        "- weight: {format: int4, granularity: group}",
        "- weight: {format: int4, granularity: channels}",
        "- weight: {format: int4}\n    skip: too small",
    ],
)
def test_mistakes_in_recipes_are_told_as_the_page_says(rule: str) -> None:
    with pytest.raises(RecipeError) as raised:
        parse_recipe(f"rules:\n  {rule}\n", source="mine.yaml")
    assert str(raised.value) in blocks(DOCS / "recipes.md", "text")[0].splitlines()


def operators_by_row() -> dict[str, str]:
    """Operators, and which row of the operators page is about each."""
    rows = {f"Scale{name.upper()}": "Scale<T>" for name, each in SCALE_TYPES.items() if each.dtype.itemsize == 1}
    rows |= {name: name for name in ("Hadamard", "AddOutliers", "PartlyBinary")}
    for kind in NAMED_FORMATS.values():
        families = ["Dequantize<F>", "Gather<F>", "MatMul<F>", "Linear<F>"]
        if kind.name in TILED_FORMATS:
            families += ["MatMul<F>Tiled", "Linear<F>Tiled", "SwiGLU<F>Tiled", "Gather<F>Tiled"]
        if isinstance(kind, Integer):
            families += [f"{each}Asymmetric" for each in families] + ["QuantizeDequantize<F>Asymmetric", "RowRange<F>"]
        if is_roundable(kind):
            families += ["QuantizeDequantize<F>", "RowScale<F>", "RowBinade<F>"]
        if isinstance(kind, Minifloat) or (isinstance(kind, Integer) and kind.signed):
            families += ["CacheScale<F>", "CacheQuantize<F>", "CacheDequantize<F>"]
        rows |= {each.replace("<F>", operator_suffix(kind)): each for each in families}
    return rows


def test_operators_page_has_every_operator_with_its_inputs_and_attributes() -> None:
    rows = {
        named(cells[0])[0]: (named(cells[1]), named(cells[2])) for cells in table(DOCS / "operators.md", "operator")
    }
    wanted = operators_by_row()
    seen = set()
    for function in functions(wanted, opset=20):
        assert function.domain == DOMAIN
        families = {"Unpack": "Unpack<b>", "Untile": "Untile<F>", "Pack": "Pack<b>", "CacheCodes": "CacheCodes<F>"}
        helper = next((name for name in families if function.name.startswith(name)), None)
        family = families[helper] if helper else wanted.get(function.name, function.name)
        seen.add(family)
        inputs, attributes = rows[family]
        assert [value.name for value in function.inputs] == inputs, function.name
        assert sorted(function.attributes) == sorted(attributes), function.name
    assert seen == rows.keys()


@pytest.mark.parametrize("target", ["ort", "ort-int8", "ort-cuda", "standard"])
def test_targets_page_says_what_each_preset_becomes(target: str, tmp_path: Path) -> None:
    original = onnx.ModelProto.FromString((CODE_LM / "model.onnx").read_bytes())
    calibration = onnxq.Calibration(CODE_LM / "calibration.npy", samples=8)
    before = {(node.domain, node.op_type) for node in original.graph.node}
    rows = table(DOCS / "targets.md", "recipe", "`ort-cuda`" if target == "ort-cuda" else "`ort`")
    assert sorted(name for cells in rows for name in named(cells[0])) == sorted({*preset_names()} - {"none"})
    for recipes, *cells in rows:
        for recipe in named(recipes):
            if recipe in calibrated_presets():
                # A cache is of one model: those that change more than weights have their own.
                asked = load_recipe(recipe)
                own = recipe if asked.equalize or any(rule.activation for rule in asked.rules) else "shared"
                cached = replace(calibration, cache=tmp_path / own)
                made, _ = onnxq.quantize_proto(
                    original, recipe, target=target, include=FIRST_ATTENTION, calibration=cached
                )
            else:
                made, _ = onnxq.quantize_proto(original, recipe, target=target)
            versions = f"{made.opset_import[0].version}, {made.ir_version}"
            if target == "standard":
                assert versions == "28, 14", recipe
                continue
            new = {node.op_type for node in made.graph.node if (node.domain, node.op_type) not in before}
            operators, wanted = cells[2:] if target == "ort-int8" else cells[:2]
            assert (new, versions) == (set(named(operators)), wanted), recipe


def test_python_page_has_every_error_with_its_exit_code() -> None:
    rows = {named(cells[0])[0]: int(cells[-1]) for cells in table(DOCS / "python.md", "error")}
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.OnnxqError)]
    assert rows == {each.__name__: each.exit_code for each in classes if each is not errors.OnnxqError}


def test_house_has_every_room() -> None:
    rooms = {named(cells[0])[0] for cells in table(DOCS / "architecture.md", "room")}
    package = ROOT / "onnxq"
    found = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == found | {path.name for path in package.glob("*.py") if not path.name.startswith("__")}


def test_changelog_names_the_version_that_is_being_made() -> None:
    version = re.search(r'^version = "(.+)"$', text_of(ROOT / "pyproject.toml"), re.MULTILINE)
    assert version
    assert f"## [{version[1]}]" in text_of(ROOT / "CHANGELOG.md")


@pytest.fixture(scope="module")
def tool() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("measure_sample", ROOT / "tools" / "measure_sample.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measured(page: Path) -> list[list[str]]:
    return table(page, "recipe", "target", "file")


def test_every_row_of_the_readme_is_one_of_the_results() -> None:
    rows = measured(README)
    assert len(rows) > 5
    assert [row for row in rows if row not in measured(DOCS / "results.md")] == []


def test_results_have_every_preset_on_every_target() -> None:
    rows = {(named(row[0])[0], named(row[1])[0]) for row in measured(DOCS / "results.md") if row[1]}
    presets = {*preset_names()} - {"none"}
    assert {name for name, target in rows if target == "ort"} == presets
    assert {name for name, target in rows if target == "standard"} == presets
    exact = {name for name in presets if load_recipe(name).rules[0].weight.format[0] in ("fp6_e2m3", "fp4_e2m1")}
    assert {name for name, target in rows if target == "ort-int8"} == exact
    assert {named(row[0])[0] for row in table(DOCS / "results.md", "recipe", "resnet") if row[0] != "float"} == presets


@pytest.mark.slow
def test_results_are_measured_again(tool: types.ModuleType, tmp_path: Path) -> None:
    written = {tuple(row[:2]) + tuple(row[6:]): row for row in measured(DOCS / "results.md")}
    for row in tool.measure(["fp6", "fp4", "int4"], tmp_path, targets=("ort",)):
        cells = row.cells()
        told = written[cells[0], cells[1], cells[6]]
        assert cells[2:4] == tuple(told[2:4]), row
        # Kernels that round activations differ in the last digits between processors.
        assert row.perplexity == pytest.approx(float(told[4]), rel=3e-4), row
        promised = {"float": 0, "fp6": 0.003, "fp4": 0.06, "int4": 0.05}[row.recipe]
        assert row.change <= promised
        assert f"{row.change:+.1%}" == "+0.0%" or abs(row.change * 100 - float(told[5].strip(" %+"))) < 0.04


def test_standard_form_decodes_to_the_weights_that_the_functions_give(tool: types.ModuleType) -> None:
    original = onnx.ModelProto.FromString((DIGITS / "vit.onnx").read_bytes())
    emitted, report = onnxq.quantize_proto(original, "int3", target="standard")
    decoded = tool.decode(original, emitted)
    tensors = [each for each in decoded.graph.initializer if each.name.startswith("decoded_")]
    assert len(tensors) > len(report.quantized) // 2
    steps = len(np.unique(onnx.numpy_helper.to_array(tensors[0])[:32, 0]))
    assert 2 < steps <= len(get_format("int3").values)
