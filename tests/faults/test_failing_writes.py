"""A disk that is full, broken, limited or closed: one clear error, and the old output is as it was."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxq.errors import OutputError
from onnxq.model.load import Model, load
from onnxq.model.save import stage

FAILURES = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT)
CALLS = ("open", "mkdir", "write", "pwrite", "fsync", "replace", "rename")
FORMS = ("external", "embedded", "copy")

Tree = dict[str, bytes]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    proto = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[1] x) => (float[1] y) { y = Relu(x) }
    """)
    for name in ("w", "v"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(20_000, np.float32), name))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "m.onnx").write_bytes(proto.SerializeToString())
    with stage(tmp_path / "in" / "external.onnx") as staging:
        staging.commit(load(tmp_path / "in" / "m.onnx"), external=True)
    return load(tmp_path / "in" / "external.onnx")


@pytest.fixture(params=["nothing", "a good output"])
def out(request: pytest.FixtureRequest, model: Model, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    if request.param != "nothing":
        with stage(folder / "m.onnx") as staging:
            staging.commit(model)
    return folder


def _tree(folder: Path) -> Tree:
    return {path.name: path.read_bytes() if path.is_file() else b"a folder" for path in folder.iterdir()}


def _save(model: Model, output: Path, form: str) -> None:
    model.ir.doc_string = "another one"
    with stage(output, force=True) as staging:
        if form == "copy":
            staging.commit_copy(model)
            return
        model.ir.graph.initializers["w"].const_value = staging.append(
            "w", ir.DataType.FLOAT, [20_000], (np.zeros(5000, np.float32) for _ in range(4))
        )
        staging.commit(model, external=form == "external")


@contextmanager
def _failing(moment: int, code: int, *, forever: bool) -> Iterator[list[str]]:
    """The `moment`-th call that changes the disk fails; with `forever`, so do all that come after it."""
    failed: list[str] = []
    count = 0

    def failing(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment or (forever and count > moment):
                failed.append(name)
                raise OSError(code, os.strerror(code))
            return call(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        # A disk that stays full still lets files be opened, renamed and removed.
        for name in ("write", "pwrite", "fsync") if forever else CALLS:
            patch.setattr(os, name, failing(name, getattr(os, name)))
        yield failed


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_call_that_fails(form: str, forever: bool, model: Model, out: Path) -> None:
    old = _tree(out)
    errors: list[tuple[int, str]] = []
    moment = 0
    while True:
        moment += 1
        code = FAILURES[moment % len(FAILURES)]
        failed: list[str] = []
        try:
            with _failing(moment, code, forever=forever) as failed:
                _save(model, out / "m.onnx", form)
        except OutputError as error:
            errors.append((code, str(error)))
            with stage(out / "other.onnx"):
                pass
            assert _tree(out) == old
            continue
        assert load(out / "m.onnx")
        if not failed:
            break
        # Only what comes after the new output took its name may fail without an error.
        assert failed[0] in ("fsync", "open")
        with stage(out / "other.onnx"):
            pass
        for path in out.iterdir():
            path.unlink()
        for name, content in old.items():
            (out / name).write_bytes(content)
    assert len(errors) > 4
    for code, text in errors:
        assert str(out / "m.onnx") in text
        assert os.strerror(code) in text
        assert "nothing was changed" in text


@pytest.mark.parametrize("form", FORMS)
def test_limit_on_the_size_of_files(form: str, model: Model, out: Path) -> None:
    old = _tree(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    errors: list[str] = []
    for limit in range(0, 200_000, 7_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            _save(model, out / "m.onnx", form)
            break
        except OutputError as error:
            errors.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert _tree(out) == old
    assert len(errors) * 7_000 >= 160_000
    assert all("File too large" in error and "nothing was changed" in error for error in errors)
    assert load(out / "m.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_folder_that_cannot_be_written(model: Model, out: Path) -> None:
    out.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            _save(model, out / "m.onnx", "external")
    finally:
        out.chmod(0o700)


def test_error_of_the_caller_is_not_taken_for_one_of_the_disk(out: Path) -> None:
    with pytest.raises(OSError, match="mine") as raised, stage(out / "m.onnx", force=True):
        raise OSError(errno.EIO, "mine")
    assert not isinstance(raised.value, OutputError)
