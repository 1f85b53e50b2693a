"""A folder of .npz files as one: their samples behind each other, read file by file when they are asked for."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.statistics.data import Array, headers, read


def read_folder(path: Path) -> dict[str, "Concatenated"]:
    """The arrays of all .npz files of a folder, in the order of their names.

    Raises:
        DataError: There is no such file, one is broken, or they do not hold the same arrays.
    """
    files = sorted(each for each in path.iterdir() if each.suffix == ".npz")
    if not files:
        raise DataError(f"the folder '{path}' has no .npz files")
    arrays = [_headers(each) for each in files]
    for file, each in zip(files, arrays, strict=True):
        _check_alike(files[0], arrays[0], file, each)
    opened = _Opened(files)
    counts = [_samples(file, each) for file, each in zip(files, arrays, strict=True)]
    return {name: Concatenated(opened, name, counts, shape[1:], dtype) for name, (shape, dtype) in arrays[0].items()}


class Concatenated:
    """One array of all files; `array[rows]` reads the files that hold these rows."""

    def __init__(
        self, opened: "_Opened", name: str, counts: list[int], sample: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        """`counts` are the samples of each file; `sample` is the shape of one."""
        self._opened = opened
        self._name = name
        self._ends = np.cumsum(counts)
        self.shape = (int(self._ends[-1]), *sample)
        self.dtype = dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.intp]) -> Array:
        of_file = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for number in np.unique(of_file):
            here = of_file == number
            start = self._ends[number - 1] if number else 0
            found[here] = self._opened.arrays(int(number))[self._name][rows[here] - start]
        return found


class _Opened:
    """The file that was read last: samples are asked for in order."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._number = -1
        self._arrays: Mapping[str, Array] = {}

    def arrays(self, number: int) -> Mapping[str, Array]:
        if number != self._number:
            self._arrays = {}
            arrays = read(self._files[number])
            if not isinstance(arrays, dict):
                raise DataError(f"data file '{self._files[number]}' is not an .npz file")
            self._number, self._arrays = number, arrays
        return self._arrays


_Headers = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def _headers(path: Path) -> _Headers:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): each for name, each in headers(archive, path).items()}
    except DataError:
        raise
    except Exception as error:  # a bad header fails in numpy's tokenizer, a bad archive in zlib, and more
        raise DataError(f"data file '{path}' is not an .npz file of plain numbers: {error}") from error


def _check_alike(first: Path, expected: _Headers, file: Path, found: _Headers) -> None:
    if expected.keys() != found.keys():
        raise DataError(
            f"the files of a folder hold the same arrays: '{first.name}' has {', '.join(expected)}, "
            f"'{file.name}' has {', '.join(found)}"
        )
    for name, (shape, dtype) in found.items():
        if (shape[1:], dtype) != (expected[name][0][1:], expected[name][1]):
            was, wanted = f"{dtype}{list(shape)}", f"{expected[name][1]}{list(expected[name][0])}"
            raise DataError(f"array '{name}' is {was} in '{file.name}' and {wanted} in '{first.name}'")


def _samples(file: Path, arrays: _Headers) -> int:
    counts = {name: shape[0] if shape else 0 for name, (shape, _) in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise DataError(f"'{file.name}': the first axis of every array counts samples, as many in each: {listed}")
    return next(iter(counts.values()))
