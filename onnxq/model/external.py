"""The one way from a reference in a model to bytes on the disk.

A model names its external data by a path that whoever made the model chose. Nothing of it is believed: the path is
taken apart and walked from the model's folder one component at a time without following links, and what counts is the
file behind the descriptor, not the name.
"""

import errno
import os
import re
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError, UnsafeModelError, reason
from onnxq.model.mapped import DataFile, MappedTensor
from onnxq.model.tensors import check_padding, dtype_of, elements_of, stored_bytes

# docs/ExternalData.md of ONNX 1.23; `basepath` is written by older exporters and never followed.
KNOWN_KEYS: Final = ("location", "offset", "length", "checksum", "basepath")
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_COPY: Final = "a copy made with 'cp -L' has none"


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a tensor says its bytes are: `length` bytes from `offset` of the file `location`."""

    location: str
    offset: int
    length: int

    @classmethod
    def of(cls, tensor: onnx.TensorProto, where: str) -> "Reference":
        """Read the reference of an external tensor.

        Raises:
            UnsafeModelError: a key is unknown or repeated, or a number or the location is not what ONNX allows.
            ModelError: the tensor also holds data, or its size is not the one its shape and type ask for.
        """
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key not in KNOWN_KEYS:
                raise UnsafeModelError(
                    f"{where} has the unknown external data key '{entry.key}'; known: {', '.join(KNOWN_KEYS)}"
                )
            if entry.key in entries:
                raise UnsafeModelError(f"{where} gives the external data key '{entry.key}' twice")
            entries[entry.key] = entry.value
        if entries.get("basepath"):
            raise UnsafeModelError(f"{where} gives a basepath for its external data, which is not followed")
        if tensor.HasField("raw_data") or any(
            (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data, tensor.double_data)
        ):
            raise ModelError(f"{where} holds data and refers to external data at the same time")
        location = entries.get("location", "")
        check_location(location, where)
        expected = stored_bytes(tensor, where)
        length = _number(entries.get("length"), "length", where)
        if length is not None and length != expected:
            raise UnsafeModelError(
                f"{where} has {length} bytes of external data where its shape and type ask for {expected}"
            )
        return cls(location, _number(entries.get("offset"), "offset", where) or 0, expected)


def check_location(location: str, where: str) -> None:
    """Refuse a path that could leave the model's folder, on this system or another.

    Raises:
        UnsafeModelError: it is empty or absolute, or has `..`, a backslash, a drive or a control character.
    """
    if not location:
        raise UnsafeModelError(f"{where} refers to external data without a location")
    if any(ord(character) < 0x20 or character == "\x7f" for character in location):
        raise UnsafeModelError(f"{where} refers to external data by a path with control characters: {location!r}")
    if "\\" in location or re.match(r"[A-Za-z]:", location):
        raise UnsafeModelError(f"{where} refers to external data by a path with a backslash or drive: '{location}'")
    if location.startswith("/"):
        raise UnsafeModelError(f"{where} refers to external data by an absolute path: '{location}'")
    if ".." in location.split("/") or not components(location):
        raise UnsafeModelError(f"{where} refers to external data outside the model's folder: '{location}'")


def components(location: str) -> list[str]:
    """The names on the way from the model's folder to the file."""
    return [part for part in location.split("/") if part not in ("", ".")]


def _number(text: str | None, name: str, where: str) -> int | None:
    # int() would also take signs, blanks, underscores and digits of other scripts.
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise UnsafeModelError(f"{where} has an external data {name} that is not a plain number: {text[:40]!r}")
    return int(text)


class DataFolder:
    """The folder of a model, and the external data files in it that were opened, each once."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Use the folder behind `descriptor`, which stays the caller's to close; `path` is for messages only."""
        self._descriptor = descriptor
        self._path = path
        self.files: dict[str, DataFile] = {}

    def tensor(self, tensor: onnx.TensorProto, where: str) -> MappedTensor:
        """The external tensor, mapped and not yet read.

        Raises:
            UnsafeModelError: the reference leads outside the folder, or to something that is not an ordinary file.
            ModelError: the file is missing or too short, or the tensor is not valid.
        """
        reference = Reference.of(tensor, where)
        # Two spellings of one path are one file.
        name = "/".join(components(reference.location))
        if (file := self.files.get(name)) is None:
            file = self.files[name] = self._open(name, where)
        if reference.offset + reference.length > file.size:
            raise ModelError(
                f"{where} needs bytes {reference.offset} to {reference.offset + reference.length} of '{file.path}', "
                f"which has {file.size} bytes; the file is truncated or belongs to another model"
            )
        dtype = dtype_of(tensor, where)
        end = reference.offset + reference.length
        last = file.view(end - 1, 1).tobytes() if reference.length else b""
        check_padding(last, dtype, elements_of(tensor, where), where)
        return mapped(file, reference.offset, dtype, tensor)

    def _open(self, name: str, where: str) -> DataFile:
        path = self._path / name
        *folders, last = components(name)
        with ExitStack() as stack:
            descriptor = self._descriptor
            try:
                for folder in folders:
                    descriptor = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=descriptor)
                    stack.callback(os.close, descriptor)
                descriptor = os.open(last, _FLAGS, dir_fd=descriptor)
                stack.callback(os.close, descriptor)
            except OSError as error:
                raise _cannot_open(error, path, where) from error
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnsafeModelError(f"{where} refers to '{path}', which is not a regular file")
            if status.st_nlink != 1:
                raise UnsafeModelError(
                    f"{where} refers to '{path}', which has {status.st_nlink} hard links and may be another file's "
                    f"content; {_COPY}"
                )
            try:
                return DataFile(descriptor, path)
            except OSError as error:
                raise _cannot_open(error, path, where) from error


def mapped(file: DataFile, offset: int, dtype: ir.DataType, tensor: onnx.TensorProto) -> MappedTensor:
    """The tensor that a checked TensorProto describes, on the bytes at `offset` of `file`."""
    return MappedTensor(
        file,
        offset,
        dtype,
        tensor.dims,
        name=tensor.name if tensor.HasField("name") else None,
        doc_string=tensor.doc_string if tensor.HasField("doc_string") else None,
        metadata_props={entry.key: entry.value for entry in tensor.metadata_props} or None,
    )


def _cannot_open(error: OSError, path: Path, where: str) -> ModelError:
    if error.errno == errno.ENOENT:
        return ModelError(f"{where} refers to '{path}', which does not exist; copy it beside the model")
    # O_NOFOLLOW answers ELOOP for a link, and together with O_DIRECTORY ENOTDIR.
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
        return UnsafeModelError(
            f"{where} refers to '{path}', and a part of that path is a symbolic link or not a folder; {_COPY}"
        )
    if error.errno == errno.ENXIO:
        return UnsafeModelError(f"{where} refers to '{path}', which is not a regular file")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ModelError("the model keeps its weights in more files than this process may open; raise 'ulimit -n'")
    return ModelError(f"{where} refers to '{path}', which cannot be opened: {reason(error)}")
