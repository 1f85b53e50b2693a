"""How far two tensors are apart, summed over batches in float64."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Elements at a time: half a MiB in float64, which stays in a core's cache.
_CHUNK = 1 << 16


@dataclass
class Distance:
    """Running sums over pairs of tensors.

    Attributes:
        signal: sum of a².
        other: sum of b².
        product: sum of a b.
        noise: sum of (a-b)².
        max_abs: largest |a-b|.
        nonfinite: elements that are NaN or Inf in one and not the same in the other; they are in none of the sums.
        problem: why a pair could not be compared, or empty.
    """

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    nonfinite: int = 0
    problem: str = ""

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """Add one pair of float tensors of the same shape; what is not that is noted as the problem."""
        if a.dtype.kind != "f" or b.dtype.kind != "f":
            self.problem = f"not floats: {a.dtype} in a, {b.dtype} in b"
        elif a.shape != b.shape:
            self.problem = f"shapes differ: {list(a.shape)} in a, {list(b.shape)} in b"
        else:
            left, right = a.reshape(-1), b.reshape(-1)
            for start in range(0, left.size, _CHUNK):
                chunk = slice(start, start + _CHUNK)
                self._add(left[chunk].astype(np.float64), right[chunk].astype(np.float64))

    def _add(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            self.nonfinite += int(np.count_nonzero(~finite & ~same))
            a, b = a[finite], b[finite]
        if not a.size:
            return
        error = a - b
        # Not as dot products: BLAS threads and onnxruntime's spinning threads hold each other up, 70 times slower.
        self.signal += float((a * a).sum())
        self.other += float((b * b).sum())
        self.product += float((a * b).sum())
        self.noise += float((error * error).sum())
        self.max_abs = max(self.max_abs, float(np.abs(error).max()))

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum a² / sum (a-b)²): Inf where the two are equal, -Inf where a is all zero and b is not."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 where both are all zero, 0 where one is."""
        if self.noise == 0.0:
            return 1.0
        size = math.sqrt(self.signal) * math.sqrt(self.other)
        return max(-1.0, min(1.0, self.product / size)) if size else 0.0
