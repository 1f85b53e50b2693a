"""k-means codebooks: the 2^b levels that suit one tensor best, in place of a format that suits all.

Lloyd's algorithm over the weights of the tensor in units of their group's largest magnitude, each weighted by the
energy of its input channel (SqueezeLLM, arXiv 2306.07629, with a table a tensor in place of a table a channel). The
levels are a `Format` like any other, so every solver rounds to them. No preset stores such a table.
"""

import numpy as np

from onnxq.formats import Codebook
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import extremes, row_groups

_STEPS = 300
# Weights that are looked at, evenly spaced.
_SAMPLE = 1 << 18
_FLOOR = 0.01
_BINS = 2048


def fit(weight: np.ndarray, bits: int, block: int | None, curvature: Curvature | None = None) -> Codebook:
    """The levels of one weight.

    Args:
        weight: [A, K, C], any float type, finite.
        bits: Of a code, 2 to 8.
        block: Neighbours along K that share a scale; None for one scale in all.
        curvature: Of the layer's inputs, or None to weigh all rows alike.

    Returns:
        Ascending levels from -1 to 1, zero among them: dead weights stay dead.
    """
    low, high = extremes(weight, block)
    largest = np.maximum(high, -low)
    rows = np.asarray(row_groups(weight.shape[1], block), np.intp)
    units = (weight / np.where(largest > 0, largest, 1)[:, rows]).astype(np.float64)
    energy = np.ones(units.shape[1]) if curvature is None else curvature.energy.astype(np.float64) + _FLOOR
    # An error counts in units of the weight, not of the scale.
    worth = np.broadcast_to(energy[None, :, None] * largest[:, rows] ** 2, units.shape)
    step = -(-units.size // _SAMPLE) or 1
    return Codebook(f"codebook{bits}", _levels(units.ravel()[::step], worth.ravel()[::step], 1 << bits))


def _levels(x: np.ndarray, worth: np.ndarray, count: int) -> tuple[float, ...]:
    """Weighted k-means in one dimension, with -1, 0 and 1 held."""
    order = np.argsort(x)
    x, worth = x[order], worth[order]
    mass = np.concatenate([[0.0], np.cumsum(worth)])
    moment = np.concatenate([[0.0], np.cumsum(worth * x)])
    levels = _spread(x, worth, count)
    held = [0, int(np.argmin(np.abs(levels[1:-1]))) + 1, count - 1]
    levels[held] = -1, 0, 1
    for _ in range(_STEPS):
        cuts = np.concatenate([[0], np.searchsorted(x, (levels[1:] + levels[:-1]) / 2), [len(x)]])
        weights = np.diff(mass[cuts])
        means = np.divide(np.diff(moment[cuts]), weights, out=levels.copy(), where=weights > 0)
        means[held] = levels[held]
        if np.array_equal(means, levels):
            break
        levels = means
    return tuple(float(each) for each in np.sort(levels))


def _spread(x: np.ndarray, worth: np.ndarray, count: int) -> np.ndarray:
    """Where to begin: as dense as the cube root of what lies there, which is best for many levels (Panter and Dite)."""
    there, edges = np.histogram(x, _BINS, (-1, 1), weights=worth)
    share = np.cumsum(np.cbrt(there) + 1e-3 * np.cbrt(there.max(initial=1e-30)))
    begin: np.ndarray = np.interp((np.arange(count) + 0.5) / count * share[-1], share, edges[1:])
    return begin
