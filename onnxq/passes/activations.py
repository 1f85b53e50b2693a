"""`Activations`: values of a model, batch by batch, in memory up to a budget and in files beyond it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxq.errors import OutputError

BUDGET_BYTES = 2 << 30


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
        """Keep values of a batch.

        Raises:
            OutputError: A file cannot be written.
        """
        for name, array in values.items():
            if self._held_bytes + array.nbytes <= self._budget:
                self._held_bytes += array.nbytes
                self._arrays[batch, name] = array
                continue
            path = self._folder / f"{self._files}.npy"
            self._files += 1
            try:
                np.save(path, array, allow_pickle=False)
            except OSError as error:
                raise OutputError(f"cannot keep activations in '{self._folder}': {error.strerror}") from error
            self._arrays[batch, name] = path

    def get(self, batch: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Values of a batch."""
        found = {}
        for name in names:
            kept = self._arrays[batch, name]
            found[name] = kept if isinstance(kept, np.ndarray) else np.load(kept, allow_pickle=False)
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
