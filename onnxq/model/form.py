"""An onnx_ir model as bytes to write: the message with its large tensors apart, to be streamed or referred to."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.serde import SerdeError

from onnxq.errors import ModelError
from onnxq.model import wire
from onnxq.model.check import reason_of
from onnxq.model.mapped import MappedTensor, chunks
from onnxq.model.places import replace_tensors
from onnxq.model.tensors import walk

# Smaller tensors stay in the message: onnxruntime needs shapes and axes there, and a reference takes about as much.
APART_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Apart:
    """A tensor that is not in the message but stands there as a reference with a number."""

    tensor: ir.TensorProtocol
    in_function: bool

    @property
    def nbytes(self) -> int:
        """Size of the tensor in `raw_data` order."""
        return self.tensor.nbytes

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of the tensor in `raw_data` order, in pieces."""
        return chunks(self.tensor)

    @property
    def place(self) -> object:
        """Equal for two tensors that share their bytes."""
        return self.tensor.place if isinstance(self.tensor, MappedTensor) else id(self.tensor)


# In the place of a tensor that the message does not have any more.
_NOTHING = Apart(ir.Tensor(np.empty(0, np.uint8)), in_function=True)


@dataclass(slots=True)
class Form:
    """A serializable model: a small message, and the large tensors that belong in it."""

    proto: onnx.ModelProto
    apart: list[Apart]
    token: str

    @classmethod
    def of(cls, model: ir.Model) -> "Form":
        """Serialize `model` without its large tensors; the model is the same afterwards.

        Raises:
            ModelError: something in the model cannot be serialized.
        """
        token = secrets.token_hex(16)
        apart: list[Apart] = []
        try:
            with _stand_ins(model, token, apart):
                proto = ir.to_proto(model)
        except (SerdeError, UnicodeEncodeError, ValueError, TypeError) as error:
            raise ModelError(f"the model cannot be serialized: {reason_of(error)}") from error
        for _, tensor in walk(proto):
            # onnx-ir writes the metadata of a tensor that it did not change twice.
            if len(tensor.metadata_props) > 1:
                entries = {entry.key: entry.value for entry in tensor.metadata_props}
                del tensor.metadata_props[:]
                for name, value in entries.items():
                    tensor.metadata_props.add(key=name, value=value)
        return cls(proto, apart, token)

    @property
    def tensor_bytes(self) -> int:
        """Size of all large tensors together."""
        return sum(item.nbytes for item in self.apart)

    def forget_unused(self) -> None:
        """Let go of the large tensors that the message no longer refers to, whose numbers stay taken."""
        used = {number for _, tensor in walk(self.proto) if (number := self._number(tensor)) is not None}
        self.apart[:] = [item if number in used else _NOTHING for number, item in enumerate(self.apart)]

    def refer(self, location: str, offsets: dict[object, int]) -> None:
        """Make references out of the tensors whose place is in `offsets`: bytes of the file `location`."""
        for _, tensor in walk(self.proto):
            if (number := self._number(tensor)) is None:
                continue
            item = self.apart[number]
            if item.in_function or item.place not in offsets:
                continue
            del tensor.external_data[:]
            entries = {"location": location, "offset": str(offsets[item.place]), "length": str(item.nbytes)}
            for name, value in entries.items():
                tensor.external_data.add(key=name, value=value)

    def _number(self, tensor: onnx.TensorProto) -> int | None:
        """Of the large tensor that one in the message refers to."""
        place = tensor.external_data[0].value if tensor.external_data else ""
        return int(place.removeprefix(self.token)) if place.startswith(self.token) else None

    def parts(self) -> list[wire.Part]:
        """The file to write: bytes, and tensors (`Apart`) to stream in their place."""
        message = self.proto.SerializeToString()
        token = self.token.encode()

        def edit(start: int, end: int) -> Sequence[wire.Part]:
            tensor = onnx.TensorProto.FromString(message[start:end])
            item = self.apart[int(tensor.external_data[0].value.removeprefix(self.token))]
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            # The order that protobuf itself writes: raw_data is field 9, doc_string and metadata_props come after it.
            tail = onnx.TensorProto(metadata_props=tensor.metadata_props)
            if tensor.HasField("doc_string"):
                tail.doc_string = tensor.doc_string
            tensor.ClearField("metadata_props")
            tensor.ClearField("doc_string")
            raw_data = wire.key(9) + wire.encode_varint(item.nbytes)
            return [tensor.SerializeToString() + raw_data, item, tail.SerializeToString()]

        def wanted(start: int, end: int) -> bool:
            return bool(message.find(token, start, end) >= 0)

        return wire.rewrite(message, wanted, edit) if token in message else [message]

    def tobytes(self) -> bytes:
        """The whole model in one message."""
        pieces: list[bytes | memoryview] = []
        for part in self.parts():
            pieces.extend([part] if isinstance(part, bytes) else part.pieces())
        return b"".join(pieces)


@contextmanager
def _stand_ins(model: ir.Model, token: str, apart: list[Apart]) -> Iterator[None]:
    """While it lasts, large tensors of `model` are references that onnx-ir serializes without reading them."""

    def standing_in(tensor: ir.TensorProtocol, in_function: bool) -> ir.TensorProtocol:
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < APART_BYTES:
            return tensor
        apart.append(Apart(tensor, in_function))
        return ir.ExternalTensor(
            f"{token}{len(apart) - 1}",
            offset=None,
            length=None,
            dtype=tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )

    def original(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location).startswith(token):
            return apart[int(str(tensor.location).removeprefix(token))].tensor
        return tensor

    try:
        replace_tensors(model, lambda tensor: standing_in(tensor, False), lambda tensor: standing_in(tensor, True))
        yield
    finally:
        replace_tensors(model, original)
