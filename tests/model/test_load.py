"""Loading: what comes back, that weights stay in the file, and that everything broken is one clear error."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from onnxq.errors import ModelError, UnsafeModelError, UsageError
from onnxq.model import load as door
from onnxq.model import wire
from onnxq.model.lift import LIFTED_BYTES
from onnxq.model.load import Model, from_proto, load
from onnxq.model.mapped import MappedTensor

Trick = Callable[[bytes, bytes], tuple[bytes, bytes]]

ADD = """
<ir_version: 10, opset_import: ["": 21]>
g (float[4] x) => (float[4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = Add(x, w) }
"""
NO_TENSOR = """
<ir_version: 10, opset_import: ["": 21, "own": 1]>
g (float[4] x) => (float[4] y) { y = own.Op <a = float {1.0}> (x) }
"""
CALLS_F = "g (float[1] x) => (float[1] y) { y = f.f(x) }"
F = '<domain: "f", opset_import: ["f": 1]> f (a) => (b) {{ b = f.{}(a) }}'


def _weight(model: Model, name: str = "w") -> ir.TensorProtocol:
    tensor = model.ir.graph.initializers[name].const_value
    assert tensor is not None
    return tensor


def _write(path: Path, model: onnx.ModelProto | str) -> Path:
    proto = onnx.parser.parse_model(model) if isinstance(model, str) else model
    path.write_bytes(proto.SerializeToString())
    return path


def _with_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    """A valid model that holds `tensor` as an unused initializer `t`."""
    model = onnx.parser.parse_model(ADD)
    tensor.name = "t"
    model.graph.initializer.append(tensor)
    model.ir_version = 14
    model.opset_import[0].version = 28
    return model


def _external(tensor: onnx.TensorProto, folder: Path, before: bytes = b"") -> onnx.TensorProto:
    """Move the data of `tensor` to a file, after some other bytes."""
    (folder / "t.data").write_bytes(before + tensor.raw_data)
    moved = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": "t.data", "offset": str(len(before)), "length": str(len(tensor.raw_data))}.items():
        moved.external_data.add(key=key, value=value)
    return moved


def _codes(dtype: ir.DataType, count: int) -> np.ndarray:
    """`count` values of `dtype` that run through its codes."""
    bits = np.arange(count, dtype=np.uint8)
    if dtype == ir.DataType.BOOL:
        return (bits % 2).astype(bool)
    if dtype.bitwidth < 8:
        return ir.PackedTensor(np.arange(count * dtype.bitwidth // 8, dtype=np.uint8), dtype, shape=[count]).numpy()
    return np.repeat(bits, dtype.bitwidth // 8).view(dtype.numpy())


def _field(number: int, content: bytes) -> bytes:
    return wire.key(number) + wire.encode_varint(len(content)) + content


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("dtype", [d for d in ir.DataType if d not in (ir.DataType.UNDEFINED, ir.DataType.STRING)])
@pytest.mark.parametrize("where", ["external", "external, unaligned", "lifted", "embedded"])
def test_every_element_type_comes_back_bit_for_bit(dtype: ir.DataType, where: str, tmp_path: Path) -> None:
    values = _codes(dtype, 32 if where == "embedded" else 8 * LIFTED_BYTES)
    tensor = onnx.TensorProto(data_type=dtype, dims=[2, values.size // 2], raw_data=ir.Tensor(values, dtype).tobytes())
    if where.startswith("external"):
        tensor = _external(tensor, tmp_path, before=b"\xff" if "unaligned" in where else b"")
    loaded = _weight(load(_write(tmp_path / "m.onnx", _with_tensor(tensor))), "t")
    assert isinstance(loaded, MappedTensor) == (where != "embedded")
    assert loaded.dtype == dtype
    assert loaded.numpy().dtype == values.dtype
    assert loaded.numpy().shape == (2, values.size // 2)
    assert loaded.numpy().tobytes() == values.tobytes()
    assert loaded.tobytes() == ir.Tensor(values, dtype).tobytes()
    assert np.asarray(loaded).tobytes() == values.tobytes()


def test_odd_count_of_packed_elements(tmp_path: Path) -> None:
    for dtype, raw in (
        (ir.DataType.INT4, b"\x21\x03"),
        (ir.DataType.UINT2, b"\x24"),
        (ir.DataType.FLOAT6E3M2, b"\x41\x20\x00"),
    ):
        tensor = _external(onnx.TensorProto(data_type=dtype, dims=[3], raw_data=raw), tmp_path)
        assert _weight(load(_write(tmp_path / "m.onnx", _with_tensor(tensor))), "t").tobytes() == raw


@pytest.mark.parametrize("dims", [[], [0], [3, 0, 2], [1, 1]])
def test_scalars_and_empty_tensors(dims: list[int], tmp_path: Path) -> None:
    values = np.ones(dims, np.float32)
    tensor = _external(onnx.numpy_helper.from_array(values), tmp_path)
    loaded = _weight(load(_write(tmp_path / "m.onnx", _with_tensor(tensor))), "t").numpy()
    assert loaded.shape == values.shape
    assert np.array_equal(loaded, values)


def test_path_size_and_external_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = load(_write(Path("plain.onnx"), ADD))
    assert (plain.path, plain.external) == (tmp_path / "plain.onnx", False)
    assert plain.size_bytes == (tmp_path / "plain.onnx").stat().st_size
    tensor = _external(onnx.numpy_helper.from_array(np.ones(9, np.float32)), tmp_path)
    model = load(_write(Path("m.onnx"), _with_tensor(tensor)))
    assert model.external
    assert model.size_bytes == (tmp_path / "m.onnx").stat().st_size + 36


def test_weights_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.ones(LIFTED_BYTES, np.float32))
    array = _weight(load(_write(tmp_path / "m.onnx", _with_tensor(tensor))), "t").numpy()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2


def test_one_file_is_opened_once_and_let_go(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(ADD)
    (tmp_path / "w.data").write_bytes(bytes(400))
    for number in range(100):
        tensor = model.graph.initializer.add(name=f"t{number}", data_type=1, dims=[1], data_location=1)
        tensor.external_data.add(key="location", value="w.data" if number % 2 else "./w.data")
        tensor.external_data.add(key="offset", value=str(4 * number))
    gc.collect()
    before = _open_files()
    loaded = load(_write(tmp_path / "m.onnx", model))
    assert len(loaded.source.data) == 1
    assert _open_files() <= before + 2
    del loaded
    gc.collect()
    assert _open_files() == before


def test_model_through_a_link_finds_its_data_beside_the_link(tmp_path: Path) -> None:
    # The path that the user names is trusted, and so is the folder it is in.
    tensor = _external(onnx.numpy_helper.from_array(np.ones(9, np.float32)), tmp_path)
    _write(tmp_path / "blob", _with_tensor(tensor))
    (tmp_path / "m.onnx").symlink_to("blob")
    assert load(tmp_path / "m.onnx").external


@pytest.mark.parametrize(
    "text",
    [
        "{ y = SimplifiedLayerNormalization<axis=-1>(x, s) }",
        """{ y = If(c) <then_branch = a () => (float[1, 4] p) { p = SimplifiedLayerNormalization<axis=-1>(x, s) },
            else_branch = b () => (float[1, 4] q) { q = Relu(x) }> }""",
    ],
)
def test_an_operator_that_onnxruntime_alone_has_in_the_domain_of_onnx_is_taken(text: str) -> None:
    head = '<ir_version: 10, opset_import: ["": 21]> g (float[1, 4] x, float[4] s, bool c) => (float[1, 4] y) '
    model = onnx.parser.parse_model(head + text)
    onnxruntime.InferenceSession(model.SerializeToString())
    assert from_proto(model).ir.graph.outputs[0].name == "y"


def test_unknown_domains_are_tolerated(tmp_path: Path) -> None:
    model = """
    <ir_version: 10, opset_import: ["": 21, "com.example": 3]>
    g (float[4] x) => (float[4] y) { y = com.example.Anything <depth = 3> (x) }
    """
    assert [node.op_type for node in load(_write(tmp_path / "m.onnx", model)).ir.graph] == ["Anything"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (ADD.encode(), "it is text"),
        (b'{"graph": {}}', "not an ONNX model"),
        (b"\x80\x04\x95pickled", "not an ONNX model"),
        (b"PK\x03\x04" + bytes(60), "not an ONNX model"),
        (os.urandom(4096), "not an ONNX model"),
        (b"\x08\x0a", "no graph"),
        (onnx.parser.parse_model(ADD).SerializeToString()[:-9], "'.*m.onnx'"),
        (onnx.parser.parse_model(ADD).graph.SerializeToString(), "'.*m.onnx'"),
    ],
)
def test_what_is_no_model_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=message) as refused:
        load(tmp_path / "m.onnx")
    assert str(tmp_path / "m.onnx") in str(refused.value)


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        load(tmp_path / "nothing.onnx")
    with pytest.raises(ModelError, match="No such file"):
        load(tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ModelError, match="is a folder"):
        load("/")
    with pytest.raises(ModelError, match="not a path"):
        load("m\0.onnx")
    with pytest.raises(UsageError, match="by its path, not as ModelProto; quantize_proto takes"):
        load(onnx.ModelProto())  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_model_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(door.MAXIMUM_MODEL_BYTES + 1)
    with pytest.raises(UnsafeModelError, match="external data"):
        load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"data_type": 1, "dims": [2**40]}, "ask for"),
        ({"data_type": 1, "dims": [2**62, 2**62]}, "no array can have"),
        ({"data_type": 1, "dims": [0, 2**62]}, "no array can have"),
        ({"data_type": 1, "dims": [1] * 65, "float_data": [1.0]}, "no array can have"),
        ({"data_type": 1, "dims": [-1]}, "negative"),
        ({"data_type": 1, "dims": [2], "float_data": [1.0]}, "1 where .* 2 values"),
        ({"data_type": 1, "dims": [2], "raw_data": bytes(7)}, "7 where .* 8 bytes"),
        ({"data_type": 14, "dims": [1], "float_data": [1.0]}, "2 values"),
        ({"data_type": 22, "dims": [3], "int32_data": [1]}, "2 values"),
        ({"data_type": 27, "dims": [1], "int32_data": [64]}, "6-bit"),
        ({"data_type": 27, "dims": [1], "raw_data": b"\x40"}, "padding"),
        ({"data_type": 8, "dims": [2], "string_data": [b"a"]}, "2 values"),
        ({"data_type": 8, "dims": [1], "raw_data": b"a"}, "strings"),
        ({"data_type": 99, "dims": [1], "raw_data": b"a"}, "type 99"),
        ({"data_type": 0, "dims": [0]}, "type 0"),
        ({"data_type": 1, "dims": [LIFTED_BYTES], "raw_data": bytes(LIFTED_BYTES)}, "ask for 16384"),
        ({"data_type": 1, "dims": [1024], "raw_data": bytes(4096), "float_data": [1.0]}, "not a valid"),
    ],
)
def test_data_that_does_not_fit_its_shape(tensor: dict[str, object], message: str, tmp_path: Path) -> None:
    model = _with_tensor(onnx.TensorProto(**tensor))
    with pytest.raises(ModelError, match=message):
        load(_write(tmp_path / "m.onnx", model))
    with pytest.raises(ModelError, match=message):
        from_proto(model)


def test_file_that_is_shorter_than_the_model_says(tmp_path: Path) -> None:
    tensor = _external(onnx.numpy_helper.from_array(np.ones(9, np.float32)), tmp_path)
    path = _write(tmp_path / "m.onnx", _with_tensor(tensor))
    (tmp_path / "t.data").write_bytes(bytes(35))
    with pytest.raises(ModelError, match=r"needs bytes 0 to 36 of .*t\.data', which has 35 bytes"):
        load(path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("g (float[1] x) => (float[1] y) { y = Add(x, nothing) }", "input 'nothing' of node"),
        ("g (float[1] x) => (float[1] y) { z = Relu(x) }", "output 'y' is not an output"),
        ("g (float[1] x) => (float[1] y) { y = Relu(x) y = Relu(x) }", "single static assignment"),
        ("g (float[1] x) => (float[1] y) { a = Add(x, y) y = Relu(a) }", "topologically sorted"),
        ("g (float[1] x) => (float[1] y) { y = Nonsense(x) }", "No Op registered for Nonsense"),
        ("g (float[1] x) => (float[1] y) { y = Relu(x, x) }", "has input size 2 not in range"),
        ("g (float[1] x) => (float[1] y) { y = unknown.Relu(x) }", "No opset import for domain 'unknown'"),
        (CALLS_F + F.format("f"), "recursive"),
        (CALLS_F + F.format("h") + F.replace("> f", "> h").format("f"), "recursive"),
    ],
)
def test_graphs_that_make_no_sense(model: str, message: str, tmp_path: Path) -> None:
    header = '<ir_version: 10, opset_import: ["": 21, "f": 1]>'
    with pytest.raises(ModelError, match=message) as refused:
        load(_write(tmp_path / "m.onnx", header + model))
    assert "m.onnx" in str(refused.value)


def test_newer_versions_than_onnx_knows(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(ADD)
    model.ir_version = 99
    with pytest.raises(ModelError, match="ir_version"):
        load(_write(tmp_path / "m.onnx", model))


@pytest.mark.parametrize(
    "trick",
    [
        # Twice the same field: the last one counts. A graph in two fields: they are merged. Unknown fields are skipped.
        lambda tensor, graph: (tensor + _field(9, b"\x01" * LIFTED_BYTES), graph),
        lambda tensor, graph: (_field(9, b"\x02" * LIFTED_BYTES) + tensor, graph),
        lambda tensor, graph: (tensor, graph + _field(7, onnx.GraphProto(doc_string="more").SerializeToString())),
        lambda tensor, graph: (tensor, _field(7, onnx.GraphProto(name="other").SerializeToString()) + graph),
    ],
)
def test_large_data_is_found_where_protobuf_finds_it(trick: Trick, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(ADD)
    raw = np.arange(LIFTED_BYTES // 4, dtype=np.float32)
    tensor, _ = trick(onnx.numpy_helper.from_array(raw, "t").SerializeToString(), b"")
    graph = model.graph.SerializeToString() + _field(5, tensor)
    model.ClearField("graph")
    _, rest = trick(b"", _field(7, graph))
    content = model.SerializeToString() + rest
    (tmp_path / "m.onnx").write_bytes(content)
    expected = onnx.ModelProto.FromString(content)
    loaded = load(tmp_path / "m.onnx")
    assert _weight(loaded, "t").tobytes() == expected.graph.initializer[1].raw_data
    assert (loaded.ir.graph.name, loaded.ir.graph.doc_string or "") == (expected.graph.name, expected.graph.doc_string)


def test_tensor_attribute_without_a_tensor(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(NO_TENSOR)
    model.graph.node[0].attribute[0].ClearField("t")
    with pytest.raises(ModelError, match="UNDEFINED"):
        load(_write(tmp_path / "m.onnx", model))


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    content = onnx.parser.parse_model(ADD.replace("Add(x, w)", "Add(longname, w)").replace("4] x", "4] longname"))
    (tmp_path / "m.onnx").write_bytes(content.SerializeToString().replace(b"longname", b"long\xff\xfe\xfdx"))
    with pytest.raises(ModelError, match="'input' in it is not UTF-8"):
        load(tmp_path / "m.onnx")


def test_from_proto_leaves_the_message_alone(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(ADD)
    before = proto.SerializeToString()
    model = from_proto(proto)
    assert (model.path, model.external, model.size_bytes) == (None, False, len(before))
    _weight(model).name = "changed"
    assert proto.SerializeToString() == before


def test_bfloat16_weight_reads_as_numbers(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, LIFTED_BYTES).astype(ml_dtypes.bfloat16)
    tensor = onnx.TensorProto(data_type=16, dims=[values.size], raw_data=values.tobytes())
    loaded = _weight(load(_write(tmp_path / "m.onnx", _with_tensor(tensor))), "t").numpy()
    assert np.array_equal(loaded.astype(np.float32), values.astype(np.float32))
