import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq

# What a terminal or a CI asks for must not change what tests compare; typer reads some of it once, when it is imported.
for name in ("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "GITHUB_ACTIONS"):
    os.environ.pop(name, None)
for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)

SAMPLES = Path(__file__).parents[1] / "samples"

# Prints which files are opened to be written outside of a folder, and events that there must be none of. What is
# imported first may open what it likes.
WATCHED = """
import os, sys
folder = sys.argv[1]
sys.argv[1:2] = []
{imports}
seen = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, args):
    if event == "open" and args[2] is not None and args[2] & WRITES:
        path = args[0] if isinstance(args[0], str) else os.fsdecode(args[0]) if isinstance(args[0], bytes) else None
        if path is None or not os.path.realpath(path).startswith(folder):
            seen.append(f"opened {{args[0]}} to write")
    elif event.split(".")[0] in ("socket", "subprocess", "pickle", "urllib", "ftplib", "http"):
        seen.append(event)
sys.addaudithook(watch)
{code}
print(*seen, sep="\\n", end="")
"""


@pytest.fixture(autouse=True)
def same_numbers(request, monkeypatch):
    """The random numbers of a test, whatever ran before it: with several workers that is another order each time."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


def script(path: Path):
    """A script of the samples as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sample_with_cache(tmp_path_factory):
    """The sample language model with a cache, in one of its forms and float types: the path of a file."""
    made = {}

    def make(form: str, dtype: int = onnx.TensorProto.FLOAT) -> Path:
        if (form, dtype) not in made:
            made[form, dtype] = tmp_path_factory.mktemp("cached") / f"{form}.onnx"
            model = script(SAMPLES / "code_lm" / "cached.py").cached(form, dtype=dtype)
            onnx.save(model, made[form, dtype])
        return made[form, dtype]

    return make


@pytest.fixture(scope="session")
def python():
    """Run code in a process of its own: what it prints."""

    def run(code: str, *arguments: object, cwd: Path, **variables: str) -> str:
        environment = (
            os.environ | {"PYTHONPATH": str(Path(onnxq.__file__).parents[1]), "OMP_NUM_THREADS": "1"} | variables
        )
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def trespasses(python):
    """What code writes outside of a folder, and whom it calls."""

    def watch(imports: str, code: str, *arguments: object, folder: Path, cwd: Path) -> list[str]:
        return python(WATCHED.format(imports=imports, code=code), folder, *arguments, cwd=cwd).splitlines()

    return watch
