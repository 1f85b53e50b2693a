"""A model that nothing is done to is copied byte for byte, with its external data."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.errors import OutputError
from onnxq.model.load import from_proto, guard, load
from onnxq.model.save import stage

LARGE = f"""
<ir_version: 10, opset_import: ["": 21]>
g (float[1] x) => (float[1] y) <float[300] w = {{{", ".join(["1.0"] * 300)}}}> {{ y = Relu(x) }}
"""

KINDS = {"node": 1884, "simple": 23, "pytorch-converted": 82, "pytorch-operator": 35}


def _corpus(kind: str) -> Iterator[bytes]:
    with warnings.catch_warnings():
        # Making the test data casts values that overflow, on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind=kind)
    for case in cases:
        if case.model is not None:
            yield case.model.SerializeToString()
        else:
            yield (Path(case.model_dir) / "model.onnx").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_backend_corpus_is_copied_byte_for_byte(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here is about power failures, and syncing takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    copied = 0
    for content in _corpus(kind):
        (tmp_path / "m.onnx").write_bytes(content)
        with stage(tmp_path / "copy.onnx", force=True) as staging:
            staging.commit_copy(load(tmp_path / "m.onnx"))
        assert (tmp_path / "copy.onnx").read_bytes() == content
        copied += 1
    assert copied == KINDS[kind]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with two data files, one in a subfolder, that has bytes which a conversion would write otherwise."""
    model = onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[4] x) => (float[4] y) { a = Add(x, w) y = Add(a, v) }
    """)
    for name, location in (("w", "w.bin"), ("v", "./deep/er/v.bin")):
        tensor = model.graph.initializer.add(name=name, data_type=1, dims=[4], data_location=1)
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
    folder = tmp_path / "in"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "w.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes() + b"unused")
    (folder / "deep" / "er" / "v.bin").write_bytes(bytes(16))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _copy(source: Path, output: Path, *, force: bool = False) -> None:
    with stage(output, force=force) as staging:
        assert staging.commit_copy(guard(source)) == output


def test_external_data_comes_along(source: Path, out: Path) -> None:
    _copy(source, out / "m.onnx")
    assert _tree(out) == _tree(source.parent)
    assert load(out / "m.onnx").external


def test_copy_beside_the_input_shares_its_data(source: Path) -> None:
    before = (source.parent / "w.bin").stat()
    _copy(source, source.parent / "copy.onnx")
    assert (source.parent / "w.bin").stat().st_ino == before.st_ino
    assert load(source.parent / "copy.onnx")


@pytest.mark.parametrize("output", ["m.onnx", "copy.onnx"])
def test_copy_over_itself_keeps_its_data(output: str, out: Path, source: Path) -> None:
    with stage(out / "m.onnx") as staging:
        staging.commit(from_proto(onnx.parser.parse_model(LARGE)), external=True)
    for _ in range(2):
        _copy(out / "m.onnx", out / output, force=True)
    assert load(out / output).external


def test_equal_data_that_is_there_is_left_alone(source: Path, out: Path) -> None:
    _copy(source, out / "m.onnx")
    before = (out / "w.bin").stat()
    _copy(source, out / "other.onnx")
    assert (out / "w.bin").stat() == before


@pytest.mark.parametrize("content", [b"mine", bytes(22)])
def test_other_data_of_that_name_is_not_replaced_without_force(content: bytes, source: Path, out: Path) -> None:
    (out / "w.bin").write_bytes(content)
    with pytest.raises(OutputError, match=r"w\.bin' exists with other content"):
        _copy(source, out / "m.onnx")
    assert _tree(out) == {"w.bin": content}
    _copy(source, out / "m.onnx", force=True)
    assert _tree(out) == _tree(source.parent)


def test_input_is_read_from_what_was_checked(source: Path, out: Path) -> None:
    expected = _tree(source.parent)
    checked = guard(source)
    for name in ("m.onnx", "w.bin"):
        (source.parent / name).unlink()
        (source.parent / name).write_bytes(b"swapped")
    with stage(out / "m.onnx") as staging:
        staging.commit_copy(checked)
    assert _tree(out) == expected


def test_output_named_like_the_data_is_refused(source: Path, out: Path) -> None:
    model = onnx.ModelProto.FromString(source.read_bytes())
    model.graph.initializer[0].external_data[1].value = "w.onnx"
    source.write_bytes(model.SerializeToString())
    source.with_name("w.bin").rename(source.with_name("w.onnx"))
    with pytest.raises(OutputError, match="also the name"):
        _copy(source, out / "w.onnx")
    assert _tree(out) == {}


@pytest.mark.parametrize("kind", ["link", "file"])
def test_folder_of_the_data_must_be_a_folder(kind: str, source: Path, out: Path, tmp_path: Path) -> None:
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        (out / "deep").symlink_to(tmp_path / "elsewhere")
    else:
        (out / "deep").write_bytes(b"")
    with pytest.raises(OutputError, match="deep"):
        _copy(source, out / "m.onnx", force=True)
    assert [path.name for path in out.iterdir()] == ["deep"]
    assert kind == "file" or list((tmp_path / "elsewhere").iterdir()) == []


def test_model_in_memory_has_no_bytes_to_copy(out: Path) -> None:
    model = from_proto(
        onnx.parser.parse_model("""
    <ir_version: 10, opset_import: ["": 21]> g (float[4] x) => (float[4] y) { y = Relu(x) }
    """)
    )
    with stage(out / "m.onnx") as staging, pytest.raises(ValueError, match="from a file"):
        staging.commit_copy(model)


def test_progress_ends_at_the_total(source: Path, out: Path) -> None:
    seen: list[tuple[int, int]] = []
    checked = guard(source)
    with stage(out / "m.onnx") as staging:
        staging.commit_copy(checked, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (checked.size_bytes, checked.size_bytes)
