"""Parse a model file without reading its weights: large raw_data becomes a reference into the file itself."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxq.errors import ModelError
from onnxq.model import wire
from onnxq.model.mapped import DataFile

# Below this a tensor is cheaper in the message than as a mapping.
LIFTED_BYTES = 4096

_RAW_DATA = 9
# Typed data, external_data and data_location: a tensor that has any of them beside raw_data is left for the checks.
_OTHER_DATA = frozenset((4, 5, 6, 7, 10, 11, 13, 14))


@dataclass(slots=True)
class Lifted:
    """A parsed model whose large tensors were left in the file."""

    proto: onnx.ModelProto
    # Stands as the location of each lifted tensor; random, so that no file can contain it.
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    # Offset and length in the model file, by the number that follows the token.
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def range_of(self, tensor: onnx.TensorProto) -> tuple[int, int] | None:
        """Offset and length in the model file, or None if this tensor was not lifted."""
        for entry in tensor.external_data:
            if entry.value.startswith(self.token):
                return self.ranges[int(entry.value.removeprefix(self.token))]
        return None


def parse(file: DataFile, name: str) -> Lifted:
    """Parse the model in `file`.

    Raises:
        ModelError: the file is empty, or is no protobuf message.
    """
    if file.size == 0:
        raise ModelError(f"{name} is empty")
    lifted = Lifted(onnx.ModelProto())
    buffer = file.buffer()

    def edit(start: int, end: int) -> Sequence[wire.Part] | None:
        kept: list[wire.Part] = []
        raw: list[tuple[int, int]] = []
        for number, wire_type, first, content, after in wire.fields(buffer, start, end):
            if number in _OTHER_DATA:
                return None
            if number == _RAW_DATA and wire_type == wire.BYTES:
                raw.append((content, after - content))
            else:
                kept.append(bytes(buffer[first:after]))
        if len(raw) != 1 or raw[0][1] < LIFTED_BYTES:
            return None
        kept.append(_stub(f"{lifted.token}{len(lifted.ranges)}"))
        lifted.ranges.extend(raw)
        return kept

    try:
        parts = wire.rewrite(buffer, lambda start, end: end - start >= LIFTED_BYTES, edit)
        message = b"".join(part for part in parts if isinstance(part, bytes))
    except wire.MalformedError:
        # What is wrong is for the real parser to say; if it sees nothing wrong, nothing was lifted.
        lifted.ranges.clear()
        message = bytes(buffer)
    try:
        lifted.proto.ParseFromString(message)
    except DecodeError as error:
        raise ModelError(f"{name} is not an ONNX model: {_guess(message[:64])}") from error
    return lifted


def _stub(location: str) -> bytes:
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return bytes(tensor.SerializeToString())


def _guess(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with 'git lfs pull'"
    if start.isascii() and start.lstrip()[:1].isalpha() | start.lstrip().startswith(b"<"):
        return "it is text; onnxq reads the binary (protobuf) form"
    return "it cannot be parsed as protobuf; the file is damaged, truncated, or something else"
