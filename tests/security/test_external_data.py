"""Attacks through external data: no reference may reach a file outside the model's folder, wherever it stands."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.errors import ModelError, UnsafeModelError
from onnxq.model.load import from_proto, guard, load

SECRET = b"root:x:0:0::/root"
Entries = dict[str, str]

MODEL = """
<ir_version: 10, opset_import: ["": 21, "f": 1]>
g (float[1] x, bool c) => (float[1] y) <float[1] w = {1.0}> {
    k = Constant <value = float[1] {1.0}> ()
    a = Add(x, w)
    b = Add(a, k)
    d = f.body(b)
    y = If(c) <
        then_branch = t () => (float[1] p) <float[1] u = {1.0}> { p = Add(d, u) },
        else_branch = e () => (float[1] q) { v = Constant <value = float[1] {1.0}> () q = Add(d, v) }
    >
}
<domain: "f", opset_import: ["": 21]>
body (m) => (n) { o = Constant <value = float[1] {1.0}> () n = Add(m, o) }
"""


def _sparse(model: onnx.ModelProto) -> onnx.TensorProto:
    sparse = model.graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ones(1, np.float32), "s"))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(np.zeros(1, np.int64), "s.indices"))
    return sparse.values


def _training(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.training_info.add().algorithm.initializer.add(name="t", data_type=1, dims=[1])


def _hidden(model: onnx.ModelProto) -> onnx.TensorProto:
    attribute = model.graph.node[1].attribute.add(name="hidden", type=onnx.AttributeProto.INT, i=1)
    attribute.t.data_type = 1
    attribute.t.dims.append(1)
    return attribute.t


def _default(model: onnx.ModelProto) -> onnx.TensorProto:
    attribute = model.functions[0].attribute_proto.add(name="default", type=onnx.AttributeProto.TENSOR)
    attribute.t.data_type = 1
    attribute.t.dims.append(1)
    return attribute.t


PLACES: dict[str, Callable[[onnx.ModelProto], onnx.TensorProto]] = {
    "initializer": lambda m: m.graph.initializer[0],
    "Constant": lambda m: m.graph.node[0].attribute[0].t,
    "subgraph initializer": lambda m: m.graph.node[4].attribute[0].g.initializer[0],
    "subgraph Constant": lambda m: m.graph.node[4].attribute[1].g.node[0].attribute[0].t,
    "function body": lambda m: m.functions[0].node[0].attribute[0].t,
    "sparse": _sparse,
    "training": _training,
    "tensor list": lambda m: m.graph.node[0].attribute.add(name="more", type=9).tensors.add(data_type=1, dims=[1]),
    "attribute of another type": _hidden,
    "function attribute default": _default,
}


def _plain(folder: Path, outside: Path) -> Entries:
    (folder / "w.data").write_bytes(b"\0" * 64)
    return {"location": "w.data"}


def _symlink_to_file(folder: Path, outside: Path) -> Entries:
    (folder / "w.data").symlink_to(outside / "secret")
    return {"location": "w.data"}


def _symlink_inside(folder: Path, outside: Path) -> Entries:
    _plain(folder, outside)
    (folder / "link").symlink_to("w.data")
    return {"location": "link"}


def _symlink_to_folder(folder: Path, outside: Path) -> Entries:
    (folder / "sub").symlink_to(outside)
    return {"location": "sub/secret"}


def _nested_symlink(folder: Path, outside: Path) -> Entries:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c").symlink_to(outside)
    return {"location": "a/b/c/secret"}


def _dangling_symlink(folder: Path, outside: Path) -> Entries:
    (folder / "w.data").symlink_to(outside / "nothing")
    return {"location": "w.data"}


def _hard_link(folder: Path, outside: Path) -> Entries:
    os.link(outside / "secret", folder / "w.data")
    return {"location": "w.data"}


def _fifo(folder: Path, outside: Path) -> Entries:
    os.mkfifo(folder / "w.data")
    return {"location": "w.data"}


def _socket(folder: Path, outside: Path) -> Entries:
    import socket

    # A socket's path has at most 107 bytes.
    here = Path.cwd()
    os.chdir(folder)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("w.data")
    finally:
        os.chdir(here)
    return {"location": "w.data"}


def _folder(folder: Path, outside: Path) -> Entries:
    (folder / "w.data").mkdir()
    return {"location": "w.data"}


def _at(location: str) -> Callable[[Path, Path], Entries]:
    return lambda folder, outside: {"location": location.format(outside=outside.name, absolute=outside)}


def _with(**entries: str) -> Callable[[Path, Path], Entries]:
    return lambda folder, outside: _plain(folder, outside) | entries


ATTACKS: dict[str, Callable[[Path, Path], Entries]] = {
    "parent": _at("../{outside}/secret"),
    "parent after a folder": _at("sub/../../{outside}/secret"),
    "parent at the end": _at("sub/.."),
    "only parent": _at(".."),
    "hidden in dots": _at("./.././{outside}/secret"),
    "doubled slashes": _at("..//{outside}//secret"),
    "absolute": _at("{absolute}/secret"),
    "absolute with two slashes": _at("//{absolute}/secret"),
    "absolute, of a file that is in the folder": lambda f, o: _plain(f, o) | {"location": "/w.data"},
    "proc": _at("/proc/self/environ"),
    "device": _at("/dev/zero"),
    "backslash parent": _at("..\\{outside}\\secret"),
    "backslash inside": _at("sub\\secret"),
    "drive": _at("C:secret"),
    "drive with slash": _at("C:/secret"),
    "UNC": _at("\\\\host\\share\\secret"),
    "NUL": _at("w.data\0/../secret"),
    "newline": _at("w.data\n"),
    "empty": _at(""),
    "the folder itself": _at("."),
    "slash only": _at("/"),
    "home": _at("~/../../etc/passwd"),
    "URL": _at("file:///etc/passwd"),
    "onnxruntime's address of memory": _at("*/_ORT_MEM_ADDR_/*"),
    "symlink to a file": _symlink_to_file,
    "symlink inside the folder": _symlink_inside,
    "symlink to a folder": _symlink_to_folder,
    "nested symlink": _nested_symlink,
    "dangling symlink": _dangling_symlink,
    "hard link": _hard_link,
    "fifo": _fifo,
    "socket": _socket,
    "folder": _folder,
    "file used as a folder": lambda f, o: _plain(f, o) | {"location": "w.data/secret"},
    "offset past the end": _with(offset="65"),
    "end past the end": _with(offset="62"),
    "offset of 2**63": _with(offset=str(2**63)),
    "offset of 30 digits": _with(offset="9" * 30),
    "negative offset": _with(offset="-4"),
    "signed offset": _with(offset="+4"),
    "offset with underscore": _with(offset="1_0"),
    "offset in Arabic digits": _with(offset="\u0664"),
    "offset is no number": _with(offset="four"),
    "negative length": _with(length="-1"),
    "length too long": _with(length="64"),
    "length too short": _with(length="3"),
    "length of nothing": _with(length="0"),
    "unknown key": _with(prefetch="1"),
    "attribute-like key": _with(__class__="x"),
    "basepath": _with(basepath="/etc"),
    "no location": lambda f, o: {"offset": "0"},
    "missing file": _at("nothing.data"),
}

# Not an attack on the folder, but a model and data that do not belong together.
ONLY_BROKEN = (
    "missing file",
    "URL",
    "onnxruntime's address of memory",
    "offset past the end",
    "end past the end",
    "offset of 2**63",
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


def _attacked(place: str, entries: Entries) -> onnx.ModelProto:
    model = onnx.parser.parse_model(MODEL)
    tensor = PLACES[place](model)
    for field in ("raw_data", "float_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_the_table_has_the_promised_breadth() -> None:
    assert len(ATTACKS) >= 40


def test_an_honest_reference_is_read(tmp_path: Path, outside: Path) -> None:
    # Otherwise the attacks below could fail for another reason.
    model = _attacked("initializer", _plain(tmp_path, outside) | {"offset": "60", "length": "4"})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    tensor = load(tmp_path / "m.onnx").ir.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [0.0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(attack: str, place: str, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    model = _attacked(place, ATTACKS[attack](folder, outside))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    for door in (load, guard):
        with pytest.raises(ModelError if attack in ONLY_BROKEN else UnsafeModelError) as refused:
            door(folder / "m.onnx")
        assert "m.onnx" in str(refused.value)
        # Refused for the reference itself, not for something behind it.
        assert any(word in str(refused.value) for word in ("external data", "refers to", "bytes")), refused.value


@pytest.mark.parametrize("attack", ["parent", "symlink to a file", "hard link"])
def test_bare_relative_path_is_guarded_too(
    attack: str, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(_attacked("initializer", ATTACKS[attack](folder, outside)).SerializeToString())
    monkeypatch.chdir(folder)
    with pytest.raises(UnsafeModelError):
        load("m.onnx")


def test_key_given_twice_is_refused(tmp_path: Path, outside: Path) -> None:
    model = _attacked("initializer", _plain(tmp_path, outside))
    model.graph.initializer[0].external_data.add(key="location", value="../outside/secret")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModelError, match="key 'location' twice"):
        load(tmp_path / "m.onnx")


def test_reference_without_the_external_flag_is_checked_too(tmp_path: Path, outside: Path) -> None:
    model = _attacked("initializer", {"location": "../outside/secret"})
    model.graph.initializer[0].ClearField("data_location")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModelError, match="outside the model's folder"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize("count", [1, 2048])
def test_data_and_reference_at_once_are_refused(count: int, tmp_path: Path, outside: Path) -> None:
    # Small data stays in the message and large data is taken out of it.
    model = _attacked("initializer", _plain(tmp_path, outside))
    model.graph.initializer[0].raw_data = bytes(4 * count)
    model.graph.initializer[0].dims[0] = count
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="at the same time"):
        load(tmp_path / "m.onnx")


def test_in_memory_model_reaches_no_file(tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeModelError, match="in memory"):
        from_proto(_attacked("initializer", _plain(tmp_path, outside)))


def test_file_that_is_swapped_after_the_check_is_not_read(tmp_path: Path, outside: Path) -> None:
    model = _attacked("initializer", _plain(tmp_path, outside))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load(tmp_path / "m.onnx")
    (tmp_path / "w.data").unlink()
    (tmp_path / "w.data").symlink_to(outside / "secret")
    tensor = loaded.ir.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.tobytes() == b"\0" * 4


def test_file_cannot_imitate_a_tensor_of_the_model_file(tmp_path: Path) -> None:
    # Large raw_data is taken out of the message and referred to under a random name; a model cannot know it.
    model = _attacked("initializer", {"location": "0" * 32 + "0"})
    large = onnx.numpy_helper.from_array(np.ones(4096, np.float32), "large")
    model.graph.initializer.append(large)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "m.onnx")
