"""How the values of a quantized weight lie on the grid that they were rounded to."""

import numpy as np

from onnxq.formats import LEARNED_FORMATS, Format
from onnxq.methods.solution import Solution

BINS = 64
# Enough that the outline of 64 bins does not change with more.
_SAMPLED_ELEMENTS = 1 << 15


def span(kind: Format) -> tuple[float, float]:
    """The smallest and the largest number of a format; with a table in each weight, as far as any may reach."""
    if kind.name in LEARNED_FORMATS:
        return -1.0, 1.0
    finite = kind.values[np.isfinite(kind.values)]
    return float(finite.min()), float(finite.max())


def histogram(weight: np.ndarray, solution: Solution) -> tuple[int, ...]:
    """Count weights, in units of their scales, in equal bins over the span of the format.

    Args:
        weight: Before rounding, [A, K, C]; of a large one evenly spaced matrices and rows are counted.
        solution: What it was rounded to.

    Returns:
        `BINS` counts; those at the ends hold what lies beyond the span too.
    """
    a, k, c = weight.shape
    matrix = max(k * c, 1)
    top = np.arange(0, a, max(1, a // max(1, _SAMPLED_ELEMENTS // matrix)))[:, None]
    rows = np.arange(0, k, max(1, min(matrix // _SAMPLED_ELEMENTS, k)))
    groups = rows // (solution.block or max(k, 1))

    def of_rows(stored: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.broadcast_to(stored, (a, stored.shape[1], c))[top, groups]
        return found

    scale = of_rows(solution.scale).astype(np.float32)
    if solution.tensor_scale is not None:
        scale *= solution.tensor_scale
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        units = weight[top, rows].astype(np.float32) / scale
    if solution.zero_point is not None:
        units += solution.format.decode(of_rows(solution.zero_point))
    low, high = span(solution.format)
    counts, _ = np.histogram(np.clip(np.nan_to_num(units), low, high), BINS, (low, high))
    return tuple(counts.tolist())
