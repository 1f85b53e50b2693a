"""The guarded door into onnxq: the only place where a model file is opened for reading."""

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.serde import SerdeError

from onnxq.errors import ModelError, UnsafeModelError, UsageError, reason
from onnxq.model.check import check, check_text, reason_of
from onnxq.model.external import DataFolder, mapped
from onnxq.model.kept import losses
from onnxq.model.lift import Lifted, parse
from onnxq.model.mapped import DataFile, MappedTensor
from onnxq.model.opset import import_standard
from onnxq.model.places import replace_tensors
from onnxq.model.tensors import check_embedded, check_padding, dtype_of, elements_of, stored_bytes, walk

# A protobuf message cannot be longer (onnx.checker.MAXIMUM_PROTOBUF).
MAXIMUM_MODEL_BYTES = 2**31 - 1


@dataclass(slots=True)
class Source:
    """A model file and its external data that passed every check, not yet made into a graph."""

    path: Path | None
    proto: onnx.ModelProto = field(repr=False)
    file: DataFile | None = field(repr=False)
    # External data files by their location in the model.
    data: dict[str, DataFile] = field(repr=False)
    tensors: list[MappedTensor] = field(repr=False)

    @property
    def size_bytes(self) -> int:
        """Size of the model file and its external data."""
        own = self.file.size if self.file else self.proto.ByteSize()
        return own + sum(file.size for file in self.data.values())


@dataclass(slots=True)
class Model:
    """A loaded model. Its weights stay in the files, mapped read-only, and are read when a tensor is asked for them."""

    ir: ir.Model
    path: Path | None
    external: bool
    size_bytes: int
    source: Source | None = field(default=None, repr=False)


def load(path: str | Path) -> Model:
    """Load the model at `path` with its external data.

    Raises:
        ModelError: there is no such file, it is broken, or it holds something that a conversion would lose.
        UnsafeModelError: it refers to data outside its folder, or is larger than a protobuf message can be.
        UsageError: `path` is none.
    """
    return _to_model(guard(path))


def from_proto(proto: onnx.ModelProto) -> Model:
    """Make a model of a message in memory, with the same checks; references to external data are refused.

    Raises:
        ModelError: as `load`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return _to_model(_guarded(Lifted(copy), None, None, None))


def guard(path: str | Path) -> Source:
    """Open and check a model without asking whether a conversion could keep all of it: enough for a copy.

    Raises:
        ModelError, UnsafeModelError, UsageError: as `load`, except for what a conversion would lose.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(
            f"a model is given by its path, not as {type(path).__name__}; quantize_proto takes an onnx.ModelProto"
        )
    if "\0" in str(path):
        raise ModelError(f"{str(path)!r} is not a path")
    path = Path(path).absolute()
    with ExitStack() as stack:
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            # Without O_NONBLOCK, opening a pipe would wait for a writer.
            descriptor = os.open(path.name or ".", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise ModelError(f"'{path}' is a folder; give the model file in it")
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"'{path}' is not a regular file")
            if status.st_size > MAXIMUM_MODEL_BYTES:
                raise UnsafeModelError(
                    f"'{path}' has {status.st_size} bytes, and a protobuf message at most {MAXIMUM_MODEL_BYTES}; "
                    "export the model with external data"
                )
            file = DataFile(descriptor, path)
        except OSError as error:
            raise ModelError(f"cannot open the model '{path}': {reason(error)}") from error
        return _guarded(parse(file, f"'{path}'"), file, path, DataFolder(folder, path.parent))


def _guarded(lifted: Lifted, file: DataFile | None, path: Path | None, folder: DataFolder | None) -> Source:
    name = f"'{path}'" if path else "the model"
    proto = lifted.proto
    try:
        if not proto.HasField("graph") or not proto.ir_version:
            raise ModelError(f"{name} is not an ONNX model: it has no graph or no IR version")
        check_text(proto, name)
        tensors = _map_tensors(lifted, file, folder, name)
        check(proto, name)
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is damaged: a name in it is not UTF-8") from error
    return Source(path, proto, file, folder.files if folder else {}, tensors)


def _map_tensors(lifted: Lifted, file: DataFile | None, folder: DataFolder | None, name: str) -> list[MappedTensor]:
    """Check every tensor; leave in each external one only its number in the list that comes back."""
    tensors: list[MappedTensor] = []
    for place_in_model, tensor in walk(lifted.proto):
        where = f"{name}: {place_in_model}"
        if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
            check_embedded(tensor, where)
            continue
        if file and (place := lifted.range_of(tensor)):
            found = _own_tensor(file, place, tensor, where)
        elif folder:
            found = folder.tensor(tensor, where)
        else:
            raise UnsafeModelError(f"{where} refers to external data, which a model in memory cannot have")
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=str(len(tensors)))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensors.append(found)
    return tensors


def _own_tensor(file: DataFile, place: tuple[int, int], tensor: onnx.TensorProto, where: str) -> MappedTensor:
    offset, length = place
    expected = stored_bytes(tensor, where)
    if length != expected:
        raise ModelError(f"{where} holds {length} bytes where its shape and type ask for {expected}")
    dtype = dtype_of(tensor, where)
    check_padding(file.view(offset + length - 1, 1).tobytes(), dtype, elements_of(tensor, where), where)
    return mapped(file, offset, dtype, tensor)


def _to_model(source: Source) -> Model:
    name = f"'{source.path}'" if source.path else "the model"
    if lost := losses(source.proto):
        shown = "; ".join(lost[:3]) + (f"; and {len(lost) - 3} more" if len(lost) > 3 else "")
        raise ModelError(f"{name} holds what a conversion would lose: {shown}")

    def put_in(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return source.tensors[int(str(tensor.location))] if isinstance(tensor, ir.ExternalTensor) else tensor

    try:
        model = ir.from_proto(source.proto)
        replace_tensors(model, put_in)
        import_standard(model)
    except (SerdeError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{name} cannot be read: {reason_of(error)}") from error
    return Model(model, source.path, bool(source.data), source.size_bytes, source)
