"""What a whole conversion promises, seen from outside: the same bytes each time, and no trace but the output."""

from pathlib import Path

DIGITS = Path(__file__).parents[1] / "samples" / "digits"
MODEL = DIGITS / "vit.onnx"

CONVERSIONS = [("fp6", "ort"), ("int4", "ort"), ("nvfp4", "standard"), ("fp4", "ort-int8")]
CONVERT = f"""
import sys
from pathlib import Path
import onnxq
threads, *models = sys.argv[1:]
for model in models:
    for recipe, target in {CONVERSIONS}:
        output = f"{{Path(model).stem}}-{{recipe}}.onnx"
        onnxq.quantize(model, recipe, output=output, target=target, threads=int(threads))
"""

CONVERT_AND_EVALUATE = """
model, small, data = sys.argv[1:]
onnxq.quantize(model, "fp6", output=small)
onnxq.evaluate(small, data=data, limit=8)
"""


def test_same_input_recipe_and_versions_give_the_same_bytes(python, tmp_path: Path) -> None:
    models, made = [MODEL, DIGITS / "resnet.onnx"], dict[str, set[bytes]]()
    for seed, threads in (("0", 1), ("1", 2), ("2", 2)):
        folder = tmp_path / seed
        folder.mkdir()
        python(CONVERT, threads, *models, cwd=folder, PYTHONHASHSEED=seed)
        for path in folder.iterdir():
            made.setdefault(path.name, set()).add(path.read_bytes())
    names = [f"{model.stem}-{recipe}.onnx" for model in models for recipe, _ in CONVERSIONS]
    assert {name: len(contents) for name, contents in made.items()} == dict.fromkeys(names, 1)


def test_a_conversion_opens_no_connection_and_writes_nothing_but_its_output(trespasses, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    files = MODEL, out / "small.onnx", MODEL.with_name("test.npz")
    imports = "import onnxq, onnxq.api, onnxq.analysis.evaluate, onnxq.recipes, onnxruntime"
    assert trespasses(imports, CONVERT_AND_EVALUATE, *files, folder=out, cwd=elsewhere) == []
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["small.onnx"]
