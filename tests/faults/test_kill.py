"""A save that is killed leaves the old output or the new one, complete; and the next run clears away what it left."""

import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxq
from onnxq.model.load import load
from onnxq.model.save import stage

SAVER = Path(__file__).with_name("dying_saver.py")
KILLED = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 3, signal.SIGTERM: 3}
FORMS = ("external", "embedded", "copy")

Tree = dict[str, bytes]


@pytest.fixture(scope="module")
def saver() -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(onnxq.__file__).parents[1]),
    }
    with subprocess.Popen(
        [sys.executable, SAVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.communicate()
    assert process.returncode == 0


def _ask(saver: subprocess.Popen[str], **request: Any) -> int:
    assert saver.stdin
    assert saver.stdout
    saver.stdin.write(json.dumps(request, default=str) + "\n")
    saver.stdin.flush()
    return json.loads(saver.stdout.readline())


def _model(path: Path, seed: int, size: int, *, external: bool) -> Path:
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[1] x) => (float[1] y) { y = Relu(x) }
    """)
    values = np.random.default_rng(seed)
    for name in ("w", "v"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values.standard_normal(size, np.float32), name))
    if external:
        onnx.external_data_helper.convert_model_to_external_data(model, location=f"{path.name}.data", size_threshold=0)
        onnx.save(model, path)
    else:
        path.write_bytes(model.SerializeToString())
    return path


def _tree(folder: Path) -> Tree:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _weights(path: Path) -> list[bytes]:
    return [value.const_value.tobytes() for value in load(path).ir.graph.initializers.values() if value.const_value]


class Scene:
    """A folder with or without a good output, and what saving another model there makes of it."""

    def __init__(self, saver: subprocess.Popen[str], folder: Path, form: str, before: str, size: int) -> None:
        self.saver = saver
        self.form = form
        self.source = _model(folder / "new.onnx", 1, size, external=form == "copy")
        self.out = folder / "out"
        self.out.mkdir()
        self.output = self.out / "m.onnx"
        if before != "nothing":
            _model(self.output, 2, size, external=before == "external")
        self.old = _tree(self.out)
        self.old_weights = _weights(self.output) if self.old else None
        assert self.save() == 0
        self.new = _tree(self.out)
        self.new_weights = _weights(self.output)
        assert self.new != self.old

    def save(self, **how: Any) -> int:
        return _ask(self.saver, source=self.source, output=self.output, form=self.form, **how)

    def reset(self) -> None:
        assert all(path.is_file() for path in self.out.iterdir())
        for name in _tree(self.out):
            (self.out / name).unlink()
        for name, content in self.old.items():
            (self.out / name).write_bytes(content)

    def check(self) -> None:
        """The output is whole now, and after the next run in its folder nothing else is left."""
        if self.output.exists():
            assert _weights(self.output) in (self.old_weights, self.new_weights)
        else:
            assert self.old_weights is None
        with stage(self.out / "other.onnx"):
            pass
        assert _tree(self.out) in (self.old, self.new)
        assert all(path.is_file() for path in self.out.iterdir())


@pytest.mark.parametrize(
    ("number", "form", "before"),
    [
        *((signal.SIGKILL, form, before) for form in FORMS for before in ("nothing", "embedded", "external")),
        *((signal.SIGINT, form, "external") for form in FORMS),
        (signal.SIGTERM, "external", "external"),
    ],
)
def test_every_moment(
    number: signal.Signals, form: str, before: str, saver: subprocess.Popen[str], tmp_path: Path
) -> None:
    scene = Scene(saver, tmp_path, form, before, size=5000)
    moments = 0
    while True:
        moments += 1
        scene.reset()
        if (code := scene.save(moment=moments, signal=number)) == 0:
            break
        assert code == KILLED[number]
        scene.check()
    # Folder, data, journal, model, their syncs and renames, and the clearing away.
    assert moments > 15
    assert _tree(scene.out) == scene.new


@pytest.mark.parametrize("before", ["nothing", "external"])
def test_random_moments(before: str, saver: subprocess.Popen[str], tmp_path: Path) -> None:
    scene = Scene(saver, tmp_path, "external", before, size=400_000)
    chance = random.Random(0)
    killed, longest = 0, 1.0
    while killed < 10:
        scene.reset()
        seconds = chance.uniform(0, longest)
        if scene.save(seconds=seconds, signal=signal.SIGKILL) == 0:
            # It was done before, so that what is later kills nothing.
            longest = seconds
        else:
            killed += 1
        scene.check()


def test_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with stage(tmp_path / "a.onnx"):
        (first,) = tmp_path.iterdir()
        with stage(tmp_path / "b.onnx"):
            assert first in tmp_path.iterdir()
            assert len(list(tmp_path.iterdir())) == 2
        assert list(tmp_path.iterdir()) == [first]


def test_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with stage(tmp_path / "a.onnx"), stage(tmp_path / "b.onnx"):
        assert len(list(tmp_path.iterdir())) == 2
    assert list(tmp_path.iterdir()) == []


def test_journal_of_a_stranger_removes_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    out = tmp_path / "out"
    abandoned = out / ".onnxq-staging-x"
    abandoned.mkdir(parents=True)
    (abandoned / "journal.json").write_text('{"moves": [], "obsolete": ["../precious"]}')
    with stage(out / "m.onnx"):
        pass
    assert list(out.iterdir()) == []
    assert (tmp_path / "precious").read_bytes() == b"mine"
