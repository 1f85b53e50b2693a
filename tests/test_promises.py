"""What a whole conversion promises, seen from outside: the same bytes each time, and no trace but the output."""

import os
import subprocess
import sys
from pathlib import Path

import onnxq

MODEL = Path(__file__).parents[1] / "samples" / "digits" / "vit.onnx"

CONVERSIONS = [("fp6", "ort"), ("int4", "ort"), ("nvfp4", "standard"), ("fp4", "ort-int8")]
CONVERT = f"""
import sys
import onnxq
for recipe, target in {CONVERSIONS}:
    onnxq.quantize(sys.argv[1], recipe, output=f"{{recipe}}.onnx", target=target, threads=int(sys.argv[2]))
"""

# Files that are opened to be written, by where they are; and events that there must be none of.
WATCHED = """
import os, sys
model, folder, tokens = sys.argv[1:]
import onnxq, onnxq.api, onnxq.analysis.evaluate, onnxq.recipes, onnxruntime
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    if event == "open" and args[2] is not None and args[2] & WRITES:
        path = args[0] if isinstance(args[0], str) else os.fsdecode(args[0]) if isinstance(args[0], bytes) else None
        if path is None or not os.path.realpath(path).startswith(folder):
            seen.append(f"opened {args[0]} to write")
    elif event.split(".")[0] in ("socket", "subprocess", "pickle", "urllib", "ftplib", "http"):
        seen.append(event)
sys.addaudithook(watch)
onnxq.quantize(model, "fp6", output=os.path.join(folder, "small.onnx"))
onnxq.evaluate(os.path.join(folder, "small.onnx"), data=tokens, limit=8)
print("\\n".join(seen))
"""


def python(code: str, *arguments: object, cwd: Path, **variables: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(onnxq.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_same_input_recipe_and_versions_give_the_same_bytes(tmp_path: Path) -> None:
    made: dict[str, set[bytes]] = {}
    for seed, threads in (("0", 1), ("1", 2), ("2", 2)):
        folder = tmp_path / seed
        folder.mkdir()
        python(CONVERT, MODEL, threads, cwd=folder, PYTHONHASHSEED=seed)
        for path in folder.iterdir():
            made.setdefault(path.name, set()).add(path.read_bytes())
    assert {name: len(contents) for name, contents in made.items()} == {f"{each}.onnx": 1 for each, _ in CONVERSIONS}


def test_a_conversion_opens_no_connection_and_writes_nothing_but_its_output(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    seen = python(WATCHED, MODEL, out, MODEL.with_name("test.npz"), cwd=elsewhere)
    assert seen.split() == []
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["small.onnx"]
