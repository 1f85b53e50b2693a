"""Take large tensors out of a serialized model, or put them in, without parsing or copying the rest.

A protobuf message is a run of fields, each a tag, and for the kinds that matter here a length and its bytes. Rewriting
one tensor changes its length and the length of every message around it; everything else is passed through untouched.
Field numbers are those of onnx.proto, which never change.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, Protocol, TypeAlias

Kind: TypeAlias = Literal["model", "graph", "node", "attribute", "function", "tensor"]

CHILDREN: Final[dict[Kind, dict[int, Kind]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "function": {7: "node", 11: "attribute"},
}
VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5


class MalformedError(ValueError):
    """The bytes are not a protobuf message that this module can walk."""


class Chunk(Protocol):
    """Bytes that are written later, so that a large tensor never stands in memory."""

    @property
    def nbytes(self) -> int:
        """How many bytes the pieces have together."""

    def pieces(self) -> Iterator[memoryview]:
        """The bytes, in order."""


Part: TypeAlias = bytes | Chunk
Edit: TypeAlias = Callable[[int, int], Sequence[Part] | None]
Wanted: TypeAlias = Callable[[int, int], bool]


def encode_varint(value: int) -> bytes:
    """`value` in base 128, least significant group first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def key(number: int) -> bytes:
    """The tag of a length-delimited field."""
    return encode_varint(number << 3 | BYTES)


def decode_varint(buffer: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """The value at `position`, and the position after it."""
    value = shift = 0
    while position < end and shift < 64:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedError("a number does not end")


def fields(buffer: bytes | memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Each field of a message as (number, wire type, start of the field, start of its content, end)."""
    position = start
    while position < end:
        first = position
        tag, position = decode_varint(buffer, position, end)
        wire_type = tag & 7
        content = position
        if wire_type == VARINT:
            _, position = decode_varint(buffer, position, end)
        elif wire_type == BYTES:
            length, content = decode_varint(buffer, position, end)
            position = content + length
        elif wire_type in (FIXED64, FIXED32):
            position += 8 if wire_type == FIXED64 else 4
        else:
            raise MalformedError(f"wire type {wire_type} is not used by ONNX")
        if position > end:
            raise MalformedError("a field is longer than the message that holds it")
        yield tag >> 3, wire_type, first, content, position


def length_of(parts: Sequence[Part]) -> int:
    """Bytes that `parts` take when written."""
    return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)


def rewrite(buffer: bytes | memoryview, wanted: Wanted, edit: Edit) -> list[Part]:
    """The serialized ModelProto in `buffer`, with tensors replaced.

    Args:
        buffer: a serialized ModelProto.
        wanted: says of a range of `buffer` whether a tensor to edit may be inside.
        edit: gives the new content of the TensorProto in a range of `buffer`, or None to leave it.

    Raises:
        MalformedError: the bytes are not a protobuf message of this shape.
    """

    def message(start: int, end: int, kind: Kind) -> list[Part]:
        if kind == "tensor":
            edited = edit(start, end)
            return [bytes(buffer[start:end])] if edited is None else list(edited)
        parts: list[Part] = []
        kept = start
        for number, wire_type, first, content, after in fields(buffer, start, end):
            child = CHILDREN[kind].get(number)
            if child is None or wire_type != BYTES or not wanted(content, after):
                continue
            inner = message(content, after, child)
            parts.append(bytes(buffer[kept:first]))
            parts.append(key(number) + encode_varint(length_of(inner)))
            parts.extend(inner)
            kept = after
        parts.append(bytes(buffer[kept:end]))
        return parts

    return message(0, len(buffer), "model")
