"""Where answers are added up."""

import math
import tempfile

import numpy as np

from onnxq.model.replacing import output_errors
from onnxq.statistics.requests import Key

# Beyond it, large answers lie in a temporary file, which the system may write out.
_MEMORY_BYTES = 1 << 30
_LARGE_BYTES = 1 << 20


class Shelf:
    """float64 answers by key; a few in memory, and many large ones in files without a name."""

    def __init__(self, expected_bytes: int) -> None:
        """`expected_bytes` are those of all answers together."""
        self.answers: dict[Key, np.ndarray] = {}
        self._in_files = expected_bytes > _MEMORY_BYTES

    def add(self, key: Key, answer: np.ndarray, merge: str, weight: float = 1.0) -> None:
        """Combine the answer about a batch with those before."""
        if key not in self.answers:
            self.answers[key] = self._room(answer.shape)
            # A way to write into a scalar too.
            self.answers[key][...] = answer if merge != "sum" or weight == 1 else answer * np.float64(weight)
            return
        total = self.answers[key]
        if merge == "min":
            np.minimum(total, answer, out=total)
        elif merge == "max":
            np.maximum(total, answer, out=total)
        else:
            np.add(total, answer if weight == 1 else answer * np.float64(weight), out=total)

    def _room(self, shape: tuple[int, ...]) -> np.ndarray:
        if not self._in_files or 8 * math.prod(shape) < _LARGE_BYTES:
            return np.empty(shape, np.float64)
        failure = "cannot keep statistics in a temporary file"
        with output_errors(failure), tempfile.TemporaryFile(prefix="onnxq-") as file:
            return np.memmap(file, np.float64, "w+", shape=shape)
