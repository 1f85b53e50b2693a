"""Tensors whose bytes stay in a file and are read when they are asked for."""

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CHUNK_BYTES = 8 << 20


class Bytes(Protocol):
    """Something that gives out ranges of a file as arrays of uint8."""

    identity: tuple[int, int]

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `offset`, read-only and not yet read from the disk."""


class DataFile:
    """A whole file, mapped read-only: the path is never opened again, so nobody can swap the file meanwhile."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Map the file behind `descriptor`, which stays the caller's to close; `path` is for messages only."""
        status = os.fstat(descriptor)
        self.path = path
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino)
        # An empty file cannot be mapped.
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if self.size else None

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `offset`, read-only and not yet read from the disk."""
        if self._map is None or length == 0:
            return np.empty(0, np.uint8)
        return np.frombuffer(self._map, np.uint8, length, offset)

    def release(self, offset: int, length: int) -> None:
        """Let go of the memory of a range; views of it stay valid, and read it again."""
        start, end = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, (offset + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and start < end:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def buffer(self) -> memoryview:
        """The whole file."""
        return memoryview(self._map if self._map is not None else b"")


class MappedTensor(ir.LazyTensor):
    """A tensor in dense ONNX `raw_data` order in a file."""

    def __init__(
        self,
        data: Bytes,
        offset: int,
        dtype: ir.DataType,
        shape: Sequence[int],
        *,
        name: str | None = None,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        fixed = ir.Shape(shape, frozen=True)
        # Not a method of this tensor: a tensor that refers to itself would keep its file mapped until a collection.
        super().__init__(
            partial(_read, data, offset, dtype, fixed),
            dtype,
            fixed,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
        )
        self.data = data
        self.offset = offset

    @property
    def place(self) -> tuple[tuple[int, int], int, int]:
        """File, offset and length: equal for two tensors that share their bytes."""
        return self.data.identity, self.offset, self.nbytes

    def stored(self) -> NDArray[np.uint8]:
        """The bytes as they stand in the file, `[nbytes]` uint8."""
        return self.data.view(self.offset, self.nbytes)

    def release(self) -> None:
        """Let go of the pages that reading it brought into memory; they would stay as long as others do not need it."""
        if isinstance(self.data, DataFile):
            self.data.release(self.offset, self.nbytes)

    def tobytes(self) -> bytes:
        """A copy of the bytes as they stand in the file."""
        return self.stored().tobytes()

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, offset={self.offset})"


def _read(data: Bytes, offset: int, dtype: ir.DataType, shape: ir.Shape) -> ir.TensorProtocol:
    dims = shape.numpy()
    stored = data.view(offset, -(-math.prod(dims) * dtype.bitwidth // 8))
    if dtype.bitwidth < 8:
        return ir.PackedTensor(stored, dtype, shape=shape)
    return ir.Tensor(stored.view(dtype.numpy()).reshape(dims), dtype)


def chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """The bytes of a tensor in `raw_data` order, in pieces of at most `CHUNK_BYTES`."""
    whole = tensor.stored().data if isinstance(tensor, MappedTensor) else memoryview(tensor.tobytes())
    for start in range(0, len(whole), CHUNK_BYTES):
        yield whole[start : start + CHUNK_BYTES]
