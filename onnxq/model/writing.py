"""Bytes of a model onto the disk: its large tensors into a data file, the message into the model file."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxq.model import wire
from onnxq.model.form import Form
from onnxq.model.growing import GrowingFile, write_all
from onnxq.model.mapped import MappedTensor, chunks

# Called with the size of each piece that was written.
Advance = Callable[[int], None]


def missing_from(data: GrowingFile, form: Form) -> dict[object, ir.TensorProtocol]:
    """The large tensors of `form` that are not in the data file yet, by their place: shared bytes appear once."""
    return {
        item.place: item.tensor
        for item in form.apart
        # onnxruntime does not look for external data in function bodies.
        if not item.in_function and not _is_in(data, item.tensor)
    }


def write_data(data: GrowingFile, form: Form, location: str, advance: Advance) -> bool:
    """Append the large tensors of `form` to the data file, and make references to `location` of all that are in it.

    Returns:
        Whether the model refers to the data file at all.

    Raises:
        OSError: the disk is full, or failed.
    """
    offsets: dict[object, int] = {}
    for item in form.apart:
        if isinstance(item.tensor, MappedTensor) and _is_in(data, item.tensor):
            offsets[item.place] = item.tensor.offset
            advance(item.nbytes)
    for place, tensor in missing_from(data, form).items():
        offsets[place] = data.align()
        for chunk in chunks(tensor):
            data.write(chunk)
            advance(len(chunk))
        if isinstance(tensor, MappedTensor):
            tensor.release()
    form.refer(location, offsets)
    return bool(offsets)


def write_model(path: Path, parts: Sequence[wire.Part], advance: Advance) -> None:
    """Write the new file `path`, onto the disk.

    Raises:
        OSError: the disk is full, or failed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for part in parts:
            if isinstance(part, bytes):
                write_all(descriptor, memoryview(part))
                continue
            for piece in part.pieces():
                write_all(descriptor, piece)
                advance(len(piece))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_in(data: GrowingFile, tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, MappedTensor) and tensor.data is data
