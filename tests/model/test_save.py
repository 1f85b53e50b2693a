"""Saving: what stands on the disk afterwards, and what is refused before anything is written."""

import errno
import os
from collections import namedtuple
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import pytest

from onnxq.errors import OutputError
from onnxq.model import publish, save
from onnxq.model.load import Model, from_proto, load
from onnxq.model.mapped import MappedTensor
from onnxq.model.save import stage

SIZE = 64

# Weights in every place: graph, Constant, subgraph, subgraph Constant, function body.
PLACES = """
<ir_version: 10, opset_import: ["": 21, "f": 1]>
g (float[N, 64] x, bool c) => (float[N, 64] y) {
    k = Constant <value = float[1] {1.0}> ()
    a = MatMul(x, w)
    b = MatMul(a, k)
    d = f.body(b)
    y = If(c) <
        then_branch = t () => (float[N, 64] p) { p = MatMul(d, u) },
        else_branch = e () => (float[N, 64] q) { v = Constant <value = float[1] {1.0}> () q = MatMul(d, v) }
    >
}
<domain: "f", opset_import: ["": 21]>
body (m) => (n) { o = Constant <value = float[1] {1.0}> () n = MatMul(m, o) }
"""


def _matrix(seed: int, name: str = "") -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal((SIZE, SIZE)).astype(np.float32)
    return onnx.numpy_helper.from_array(values, name)


@pytest.fixture
def proto() -> onnx.ModelProto:
    model = onnx.parser.parse_model(PLACES)
    model.graph.initializer.append(_matrix(0, "w"))
    model.graph.node[0].attribute[0].t.CopyFrom(_matrix(1))
    then, other = (attribute.g for attribute in model.graph.node[4].attribute)
    then.initializer.append(_matrix(2, "u"))
    other.node[0].attribute[0].t.CopyFrom(_matrix(3))
    model.functions[0].node[0].attribute[0].t.CopyFrom(_matrix(4))
    return model


@pytest.fixture
def source(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def _listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _save(model: Model, output: Path, **how: bool) -> Path:
    with stage(output, force=True) as staging:
        return staging.commit(model, **how)


def _tensor(model: Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def test_embedded_bytes_are_those_of_protobuf(source: Path, proto: onnx.ModelProto, out: Path) -> None:
    path = _save(load(source), out / "m.onnx")
    content = path.read_bytes()
    assert _listing(out) == ["m.onnx"]
    assert content == ir.to_proto(from_proto(proto).ir).SerializeToString()
    assert onnx.ModelProto.FromString(content).SerializeToString() == content


def test_external_data_holds_everything_but_functions_and_small_tensors(source: Path, out: Path) -> None:
    path = _save(load(source), out / "m.onnx", external=True)
    assert _listing(out) == ["m.onnx", "m.onnx.data"]
    model = onnx.ModelProto.FromString(path.read_bytes())
    onnx.checker.check_model(str(path))
    then, other = (attribute.g for attribute in model.graph.node[4].attribute)
    outside = [
        model.graph.initializer[0],
        model.graph.node[0].attribute[0].t,
        then.initializer[0],
        other.node[0].attribute[0].t,
    ]
    entries = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
    nbytes = SIZE * SIZE * 4
    assert [entry["location"] for entry in entries] == ["m.onnx.data"] * 4
    assert [int(entry["offset"]) for entry in entries] == [0, nbytes, 2 * nbytes, 3 * nbytes]
    assert [int(entry["length"]) for entry in entries] == [nbytes] * 4
    inside = model.functions[0].node[0].attribute[0].t
    assert inside.raw_data == _matrix(4).raw_data
    for seed, entry in enumerate(entries):
        data = (out / "m.onnx.data").read_bytes()
        assert data[int(entry["offset"]) :][:nbytes] == _matrix(seed).raw_data


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_forms_turn_into_each_other(first: bool, second: bool, source: Path, out: Path) -> None:
    _save(load(source), out / "direct.onnx", external=second)
    _save(load(source), out / "first.onnx", external=first)
    _save(load(out / "first.onnx"), out / "second.onnx", external=second)
    direct, detour = (out / f"{name}.onnx" for name in ("direct", "second"))
    assert direct.read_bytes().replace(b"direct.onnx", b"second.onnx") == detour.read_bytes()
    if second:
        assert Path(f"{direct}.data").read_bytes() == Path(f"{detour}.data").read_bytes()


def test_form_follows_the_input(source: Path, out: Path) -> None:
    _save(load(source), out / "a.onnx", external=True)
    model = load(out / "a.onnx")
    assert model.external
    _save(model, out / "b.onnx")
    assert (out / "b.onnx.data").exists()


def test_form_follows_the_size(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "EMBEDDED_BYTES", 5 * SIZE * SIZE * 4 - 1)
    _save(load(source), out / "m.onnx")
    assert (out / "m.onnx.data").exists()


def test_model_in_memory_is_unchanged_and_readable_afterwards(source: Path, out: Path) -> None:
    model = load(source)
    before = ir.to_proto(model.ir).SerializeToString()
    with stage(out / "m.onnx") as staging:
        appended = staging.append("t", ir.DataType.UINT8, [300], [bytes(300)])
        staging.commit(model, external=True)
    assert ir.to_proto(model.ir).SerializeToString() == before
    assert appended.tobytes() == bytes(300)


def test_appended_tensor_can_be_read_and_keeps_its_place(source: Path, out: Path) -> None:
    model = load(source)
    packed = np.arange(SIZE * SIZE // 2, dtype=np.uint8)
    with stage(out / "m.onnx") as staging:
        first = staging.append("scale", ir.DataType.FLOAT, [3], [np.ones(2, np.float32), np.zeros(1, np.float32)])
        tensor = staging.append("w", ir.DataType.INT4, [SIZE, SIZE], (row.tobytes() for row in packed.reshape(4, -1)))
        assert first.numpy().tolist() == [1, 1, 0]
        assert np.array_equal(tensor.numpy(), ir.PackedTensor(packed, ir.DataType.INT4, shape=[SIZE, SIZE]).numpy())
        assert not (out / "m.onnx").exists()
        model.ir.graph.initializers["w"].const_value = tensor
        model.ir.graph.node(1).op_type = "Custom"
        model.ir.graph.node(1).domain = "f"
        staging.commit(model, external=True)
    place = _tensor(load(out / "m.onnx"))
    assert isinstance(place, MappedTensor)
    assert place.offset == 64
    assert place.tobytes() == packed.tobytes()


def test_appended_tensor_of_a_function_is_embedded(source: Path, out: Path) -> None:
    model = load(source)
    (function,) = model.ir.functions.values()
    constant = function.graph.node(0)
    values = np.full((SIZE, SIZE), 2, np.float32)
    with stage(out / "m.onnx") as staging:
        tensor = staging.append("o", ir.DataType.FLOAT, [SIZE, SIZE], [values])
        constant.attributes["value"] = ir.AttrTensor("value", tensor)
        staging.commit(model, external=True)
    saved = onnx.ModelProto.FromString((out / "m.onnx").read_bytes())
    assert saved.functions[0].node[0].attribute[0].t.raw_data == values.tobytes()


def test_appended_tensor_can_be_embedded(source: Path, out: Path) -> None:
    model = load(source)
    values = np.full((SIZE, SIZE), 2, np.float32)
    with stage(out / "m.onnx") as staging:
        model.ir.graph.initializers["w"].const_value = staging.append("w", ir.DataType.FLOAT, [SIZE, SIZE], [values])
        staging.commit(model)
    assert _listing(out) == ["m.onnx"]
    assert np.array_equal(_tensor(load(out / "m.onnx")).numpy(), values)


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d not in (ir.DataType.UNDEFINED, ir.DataType.STRING)])
def test_every_element_type_is_appended_and_loaded_bit_for_bit(dtype: ir.DataType, out: Path) -> None:
    text = '<ir_version: 14, opset_import: ["": 28]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    model = from_proto(onnx.parser.parse_model(text))
    stored = (np.arange(SIZE * SIZE * dtype.bitwidth // 8) % 2).astype(np.uint8)
    with stage(out / "m.onnx") as staging:
        tensor = staging.append("t", dtype, [SIZE, SIZE], [stored])
        model.ir.graph.initializers.add(ir.Value(name="t", const_value=tensor))
        staging.commit(model, external=True)
    assert _tensor(load(out / "m.onnx"), "t").tobytes() == stored.tobytes()


def test_appending_another_number_of_bytes_is_a_mistake_of_the_caller(out: Path) -> None:
    with stage(out / "m.onnx") as staging:
        with pytest.raises(ValueError, match="takes 8 bytes, not 7"):
            staging.append("t", ir.DataType.FLOAT, [2], [bytes(7)])
        assert staging.append("t", ir.DataType.FLOAT, [2], [bytes(8)]).offset == 0


def test_tensor_that_fails_half_way_leaves_no_gap(out: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(100)
        raise OSError(errno.EIO, "mine")

    with stage(out / "m.onnx") as staging:
        with pytest.raises(OSError, match="mine") as raised:
            staging.append("t", ir.DataType.FLOAT, [100], broken())
        assert not isinstance(raised.value, OutputError)
        assert staging.append("t", ir.DataType.FLOAT, [2], [bytes(8)]).offset == 0


def test_shared_bytes_are_written_once(source: Path, out: Path) -> None:
    model = load(source)
    model.ir.graph.initializers.add(ir.Value(name="tied", const_value=_tensor(model)))
    again = _tensor(model)
    assert isinstance(again, MappedTensor)
    twin = MappedTensor(again.data, again.offset, again.dtype, again.shape.numpy())
    model.ir.graph.initializers.add(ir.Value(name="twin", const_value=twin))
    _save(model, out / "m.onnx", external=True)
    saved = load(out / "m.onnx")
    assert {_tensor(saved, name).offset for name in ("w", "tied", "twin")} == {0}
    assert (out / "m.onnx.data").stat().st_size == 4 * SIZE * SIZE * 4


def test_metadata_of_a_tensor_is_written_once(proto: onnx.ModelProto, out: Path) -> None:
    proto.graph.initializer.add(name="t", data_type=1, dims=[1], float_data=[1.0]).metadata_props.add(
        key="k", value="v"
    )
    proto.graph.initializer[0].metadata_props.add(key="k", value="v")
    _save(from_proto(proto), out / "m.onnx")
    saved = onnx.ModelProto.FromString((out / "m.onnx").read_bytes())
    for tensor in saved.graph.initializer:
        assert [(entry.key, entry.value) for entry in tensor.metadata_props] == [("k", "v")]


def test_same_model_same_bytes(source: Path, out: Path) -> None:
    for number in range(2):
        (out / str(number)).mkdir()
        _save(load(source), out / str(number) / "m.onnx", external=True)
    for name in ("m.onnx", "m.onnx.data"):
        assert (out / "0" / name).read_bytes() == (out / "1" / name).read_bytes()


def _note(seen: list[tuple[int, ...]], *numbers: int) -> None:
    seen.append(numbers)


def test_progress_ends_at_the_total(source: Path, out: Path) -> None:
    for external in (False, True):
        seen: list[tuple[int, ...]] = []
        with stage(out / "m.onnx", force=True) as staging:
            staging.commit(load(source), external=external, progress=partial(_note, seen))
        assert seen[-1] == (5 * SIZE * SIZE * 4, 5 * SIZE * SIZE * 4)
        assert seen == sorted(seen)


def test_nothing_is_left_without_commit(out: Path) -> None:
    with stage(out / "m.onnx") as staging:
        staging.append("t", ir.DataType.FLOAT, [2], [bytes(8)])
        assert len(_listing(out)) == 1
    assert _listing(out) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(error: type[BaseException], out: Path) -> None:
    with pytest.raises(error), stage(out / "m.onnx"):
        raise error
    assert _listing(out) == []


def test_existing_output_needs_force(source: Path, out: Path) -> None:
    (out / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match="--force"), stage(out / "m.onnx"):
        pass
    assert (out / "m.onnx").read_bytes() == b"mine"
    _save(load(source), out / "m.onnx")
    assert load(out / "m.onnx")


def test_output_that_appears_meanwhile_is_not_replaced(source: Path, out: Path) -> None:
    with stage(out / "m.onnx") as staging:
        (out / "m.onnx").write_bytes(b"mine")
        with pytest.raises(OutputError, match="--force"):
            staging.commit(load(source))
    assert _listing(out) == ["m.onnx"]
    assert (out / "m.onnx").read_bytes() == b"mine"


def test_input_is_not_replaced_by_accident(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(OutputError, match="is the input"), stage(source, overwrite_of=source):
        pass
    _save(load(source), source, external=True)
    assert source.read_bytes() != before
    assert np.array_equal(_tensor(load(source)).numpy(), onnx.numpy_helper.to_array(_matrix(0)))


def test_input_with_external_data_can_be_replaced_with_force(source: Path, out: Path) -> None:
    _save(load(source), out / "m.onnx", external=True)
    for _ in range(3):
        _save(load(out / "m.onnx"), out / "m.onnx")
        assert load(out / "m.onnx").external
        assert len(_listing(out)) == 2
        assert np.array_equal(_tensor(load(out / "m.onnx")).numpy(), onnx.numpy_helper.to_array(_matrix(0)))


@pytest.mark.parametrize("force", [False, True])
def test_outputs_that_are_no_files_are_refused(force: bool, source: Path, out: Path) -> None:
    (out / "link.onnx").symlink_to(source)
    (out / "dangling.onnx").symlink_to("nothing")
    (out / "folder.onnx").mkdir()
    os.mkfifo(out / "pipe.onnx")
    for name in ("link.onnx", "dangling.onnx", "folder.onnx", "pipe.onnx", "missing/m.onnx", "pipe.onnx/m.onnx"):
        with pytest.raises(OutputError), stage(out / name, force=force):
            pass
    with pytest.raises(OutputError), stage("/dev/null", force=force):
        pass
    assert _listing(out) == ["dangling.onnx", "folder.onnx", "link.onnx", "pipe.onnx"]


def test_name_of_the_data_file_avoids_what_is_there(source: Path, out: Path) -> None:
    (out / "m.onnx.data").write_bytes(b"mine")
    (out / "m.onnx.1.data").symlink_to("nothing")
    _save(load(source), out / "m.onnx", external=True)
    assert _listing(out) == ["m.onnx", "m.onnx.1.data", "m.onnx.2.data", "m.onnx.data"]
    assert (out / "m.onnx.data").read_bytes() == b"mine"
    assert set(load(out / "m.onnx").source.data) == {"m.onnx.2.data"}


def test_old_data_goes_with_the_old_model(source: Path, out: Path) -> None:
    _save(load(source), out / "m.onnx", external=True)
    _save(load(source), out / "m.onnx", external=True)
    assert _listing(out) == ["m.onnx", "m.onnx.1.data"]
    _save(load(source), out / "m.onnx", external=False)
    assert _listing(out) == ["m.onnx"]


def test_old_data_that_another_model_uses_stays(source: Path, out: Path) -> None:
    _save(load(source), out / "m.onnx", external=True)
    with stage(out / "copy.onnx") as staging:
        staging.commit_copy(load(out / "m.onnx"))
    _save(load(source), out / "m.onnx", external=False)
    assert _listing(out) == ["copy.onnx", "m.onnx", "m.onnx.data"]
    assert load(out / "copy.onnx")


def test_data_with_another_name_is_never_removed(source: Path, out: Path) -> None:
    _save(load(source), out / "other.onnx", external=True)
    (out / "other.onnx").rename(out / "m.onnx")
    _save(load(source), out / "m.onnx", external=False)
    assert _listing(out) == ["m.onnx", "other.onnx.data"]


def test_permissions_of_the_old_output_stay(source: Path, out: Path) -> None:
    _save(load(source), out / "m.onnx")
    (out / "m.onnx").chmod(0o640)
    _save(load(source), out / "m.onnx")
    assert (out / "m.onnx").stat().st_mode & 0o777 == 0o640


def test_model_that_is_not_valid_is_not_written(source: Path, out: Path) -> None:
    model = load(source)
    model.ir.graph.node(1).op_type = "Nonsense"
    (out / "m.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"Nonsense.*nothing was changed"):
        _save(model, out / "m.onnx")
    assert _listing(out) == ["m.onnx"]
    assert (out / "m.onnx").read_bytes() == b"mine"


def test_embedding_too_much_names_the_way_out(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "MAXIMUM_MODEL_BYTES", 1000)
    with pytest.raises(OutputError, match="external data"):
        _save(load(source), out / "m.onnx", external=False)
    assert _listing(out) == []


@pytest.mark.parametrize("external", [False, True])
def test_full_disk_is_noticed_before_writing(
    external: bool, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(save.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="1000 free"):
        _save(load(source), out / "m.onnx", external=external)
    assert _listing(out) == []


def test_second_commit_is_a_mistake_of_the_caller(source: Path, out: Path) -> None:
    with stage(out / "m.onnx") as staging:
        staging.commit(load(source))
        with pytest.raises(ValueError, match="before"):
            staging.commit(load(source))
        with pytest.raises(ValueError, match="before"):
            staging.append("t", ir.DataType.FLOAT, [1], [bytes(4)])


def test_folder_that_does_not_sync_is_only_a_warning(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(publish, "sync_folder", fails)
    _save(load(source), out / "m.onnx")
    assert "complete" in caplog.text
    assert load(out / "m.onnx")
