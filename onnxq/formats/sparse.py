"""A few numbers among many zeros: each with its distance to the one before, in sixteen bits."""

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxq.formats.base import Floats

Gaps = npt.NDArray[np.uint16]
Positions = npt.NDArray[np.int64]

ENTRY_BYTES = 4
"""Of a distance and a number."""
_FARTHEST = int(np.iinfo(np.uint16).max)


def most_entries(count: int, size: int) -> int:
    """The most entries that `count` numbers among `size` take, with those that only bridge a distance."""
    return count + max(size - 1, 0) // _FARTHEST


def half_of(values: npt.ArrayLike) -> np.ndarray:
    """Numbers in sixteen bits: float16, or bfloat16 where one of them would leave the normal numbers of float16."""
    floats = np.asarray(values, np.float32)
    limits = np.finfo(np.float16)
    magnitude = np.abs(floats[floats != 0])
    fits = ((magnitude >= limits.smallest_normal) & (magnitude <= limits.max)).all()
    return floats.astype(np.float16 if fits else ml_dtypes.bfloat16)


def pack_sparse(positions: Positions, values: np.ndarray) -> tuple[Gaps, np.ndarray]:
    """Entries in order, each with the distance to the one before.

    Args:
        positions: [n], ascending, in the flat array.
        values: [n], of any type.

    Returns:
        [m] distances, the first from the beginning, and [m] values. Where two numbers lie farther apart than sixteen
        bits can tell, zeros lie between: m is at most `most_entries`.
    """
    gaps = np.diff(positions, prepend=0)
    between = np.maximum(gaps - 1, 0) // _FARTHEST
    own = np.arange(len(positions)) + np.cumsum(between)
    entries = len(positions) + int(between.sum())
    stored, kept = np.full(entries, _FARTHEST, np.uint16), np.zeros(entries, values.dtype)
    stored[own] = gaps - between * _FARTHEST
    kept[own] = values
    return stored, kept


def unpack_sparse(gaps: Gaps, values: np.ndarray, size: int) -> Floats:
    """The flat array, float32 [size]."""
    dense = np.zeros(size, np.float32)
    dense[np.cumsum(gaps.astype(np.int64))] = values.astype(np.float32)
    return dense
