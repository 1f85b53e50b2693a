"""A data file that is being written, from which earlier tensors can already be read."""

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# onnxruntime and SIMD loads like cache lines; a larger alignment would only make files larger.
ALIGNMENT = 64


def write_all(descriptor: int, data: memoryview) -> None:
    """Write every byte; a single write may stop early.

    Raises:
        OSError: the disk is full, or failed.
    """
    while data:
        data = data[os.write(descriptor, data) :]


class GrowingFile:
    """Append-only; what was appended can be read as long as this object or an array of it lives."""

    def __init__(self, path: Path) -> None:
        """Create the file at `path`.

        Raises:
            OSError: it cannot be created.
        """
        self.path = path
        self.size = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        status = os.fstat(self._descriptor)
        self.identity = (status.st_dev, status.st_ino)
        self._map: mmap.mmap | None = None

    def align(self) -> int:
        """Fill up to the next multiple of `ALIGNMENT` with zeros and give the offset.

        Raises:
            OSError: the disk is full, or failed.
        """
        self.write(memoryview(bytes(-self.size % ALIGNMENT)))
        return self.size

    def write(self, data: memoryview) -> None:
        """Append bytes.

        Raises:
            OSError: the disk is full, or failed.
        """
        # At a given place: after a write that failed half-way, the next one must not continue from there.
        while data:
            written = os.pwrite(self._descriptor, data, self.size)
            self.size += written
            data = data[written:]

    def cut(self, size: int) -> None:
        """Take back everything after the first `size` bytes."""
        os.ftruncate(self._descriptor, size)
        self.size = size

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """`length` bytes from `offset`, read-only and not yet read from the disk."""
        if length == 0:
            return np.empty(0, np.uint8)
        if self._map is None or len(self._map) < offset + length:
            self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, np.uint8, length, offset)

    def sync(self) -> None:
        """Make the content outlast a power failure.

        Raises:
            OSError: the disk failed.
        """
        os.fsync(self._descriptor)

    def close(self) -> None:
        """End the writing; the content can still be read."""
        if self.size:
            self._map = mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ)
        os.close(self._descriptor)
