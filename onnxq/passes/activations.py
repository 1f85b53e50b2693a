"""`Activations`: values of a model, batch by batch, in memory up to a budget and in files beyond it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxq.model.arrays import read_arrays, write_arrays

BUDGET_BYTES = 2 << 30
# Each file holds one array; names of values are no names of files.
_ARRAY = "value"


class Activations:
    """What flows from one part of a model to the next."""

    def __init__(self, folder: Path, budget_bytes: int = BUDGET_BYTES) -> None:
        """`folder` exists, and is somebody else's to remove; arrays go there once the others fill the budget."""
        self._folder = folder
        self._budget = budget_bytes
        self._held_bytes = 0
        self._arrays: dict[tuple[int, str], np.ndarray | Path] = {}
        self._files = 0

    def put(self, batch: int, values: Mapping[str, np.ndarray]) -> None:
        """Keep values of a batch that are not kept yet.

        Raises:
            OutputError: A file cannot be written.
        """
        for name, array in values.items():
            if self._held_bytes + array.nbytes <= self._budget:
                self._held_bytes += array.nbytes
                self._arrays[batch, name] = array
                continue
            path = self._folder / f"{self._files}.safetensors"
            self._files += 1
            write_arrays(path, {_ARRAY: array}, {}, f"activations to '{self._folder}'", lasting=False)
            self._arrays[batch, name] = path

    def get(self, batch: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Values of a batch."""
        found = {}
        for name in names:
            kept = self._arrays[batch, name]
            found[name] = kept if isinstance(kept, np.ndarray) else read_arrays(kept)[0][_ARRAY]
        return found

    def names(self, batch: int) -> set[str]:
        """What is kept of a batch."""
        return {name for number, name in self._arrays if number == batch}

    def keep(self, batch: int, names: Iterable[str]) -> None:
        """Forget all values of a batch but these."""
        wanted = set(names)
        for key in [key for key in self._arrays if key[0] == batch and key[1] not in wanted]:
            kept = self._arrays.pop(key)
            if isinstance(kept, np.ndarray):
                self._held_bytes -= kept.nbytes
            else:
                kept.unlink(missing_ok=True)
