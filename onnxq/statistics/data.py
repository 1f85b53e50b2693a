"""Read data files, and give an input its type without losing anything.

Data files are untrusted: nothing is unpickled, and what an archive says it holds is checked against a limit before
any of it is read.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, number_of
from onnxq.runtime.inputs import Input

Array = NDArray[Any]


class Lazy(Protocol):
    """Samples that are read or made when they are asked for; of an array it has what batches are cut with."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all samples; the first axis counts them."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""

    @property
    def ndim(self) -> int:
        """Dimensions."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.intp]) -> Array: ...


Samples = Array | Lazy
Source = str | Path | Array | Mapping[str, Array]
"""A .npy or .npz file, or what it would hold."""

LIMIT_BYTES = 8 << 30


def read(source: Source, *, limit_bytes: int = LIMIT_BYTES) -> Array | dict[str, Array]:
    """One array of a .npy file, or the named arrays of an .npz file; arrays and mappings pass through.

    Raises:
        DataError: no such file, not a numpy file, holds Python objects, or is larger than `limit_bytes` unpacked.
    """
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Mapping):
        return {name: np.asarray(value) for name, value in source.items()}
    path = Path(source)
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; one .npz or .npy file is needed here")
    if not path.is_file():
        raise DataError(f"data file '{path}' does not exist")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path, limit_bytes)
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DataError:
        raise
    except Exception as error:  # a bad header fails in numpy's tokenizer, a bad archive in zlib, and more
        raise DataError(f"data file '{path}' is not a .npy or .npz file of plain numbers: {error}") from error
    return array


def read_one(source: Source, what: str) -> Array:
    """As `read`, where named arrays make no sense; `what` is what an error calls it."""
    found = read(source)
    if isinstance(found, dict):
        raise DataError(f"{what} are one array in a .npy file, not the named ones of an .npz")
    return found


def _read_archive(path: Path, limit_bytes: int) -> dict[str, Array]:
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > limit_bytes:
            raise DataError(f"data file '{path}' unpacks to {total:,} bytes, over the limit of {limit_bytes:,}")
        arrays = {}
        for name in headers(archive, path):
            with archive.open(name) as stream:
                arrays[name.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def headers(archive: zipfile.ZipFile, path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of an .npz file, by the name of its member.

    Raises:
        DataError: an array is not as large as it claims; numpy would allocate it before it sees that.
    """
    found = {}
    for member in archive.infolist():
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            of_version = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
            shape, _, dtype = of_version[version != (1, 0)](stream)
        claimed = int(dtype.itemsize) * int(np.prod([int(dim) for dim in shape], dtype=object))
        if claimed > member.file_size:
            raise DataError(f"data file '{path}': array '{member.filename}' claims {claimed:,} bytes it does not have")
        found[member.filename] = (shape, dtype)
    return found


def cast(array: Array, wanted: Input) -> Array:
    """`array` in the type an input takes, where every value keeps its meaning.

    Integers go to any integer or float type that holds each of them exactly, floats to any float type that holds their
    range (float64 to float32 rounds, as every framework does when it feeds data).

    Raises:
        DataError: a value does not fit, or is NaN or +Inf; -Inf is how masks are written.
    """
    if array.dtype.kind == "f" and (bad := np.isnan(array) | np.isposinf(array)).any():
        first = [int(at) for at in np.argwhere(bad)[0]]
        what = number_of(int(bad.sum()), "NaN or Inf value")
        raise DataError(f"data for input '{wanted.name}' has {what} (first at {first})")
    if array.dtype == wanted.dtype:
        return array
    kinds = array.dtype.kind + wanted.dtype.kind
    if kinds in ("bb", "bi", "bu", "ff", "ii", "iu", "ui", "uu", "if", "uf"):
        with np.errstate(over="ignore", invalid="ignore"):
            changed = array.astype(wanted.dtype)
            kept = np.isinf(changed) == np.isinf(array) if kinds == "ff" else _equal(array, changed)
        if np.all(kept):
            return changed
        first = [int(at) for at in np.argwhere(~np.asarray(kept))[0]]
        raise DataError(f"input {wanted} cannot hold {array[tuple(first)]}, the data at {first} of a batch")
    raise DataError(f"input {wanted} cannot be fed with {array.dtype} data")


def _equal(array: Array, changed: Array) -> Any:
    """Whether each integer survived; compared in its own type, and by sign, since a wrapped value can wrap back."""
    return (changed.astype(array.dtype) == array) & ((changed < 0) == (array < 0))
