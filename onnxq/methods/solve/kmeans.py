"""k-means codebooks: the table of a format learned from one weight, then rounded to with the best range of each group.

In units of their scales the weights of all groups are one set of numbers, and the table is its k-means on a line
(Lloyd, 1982). A number counts there as its error does in the output of the layer, on the diagonal of H (SqueezeLLM,
arXiv 2306.07629, which has a table for each column in place of scales). Scales and table are found by turns.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from onnxq.formats import Codebook, Format
from onnxq.formats.base import Floats
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import Grid, GridSpec, extremes, lay, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve import clip, rtn

# How often scales are laid and a table is learned.
_TURNS = 3
# Lloyd's algorithm ends where no level moves farther, in units of the largest; on normal weights after some 100 steps.
_STILL, _STEPS = 1e-5, 300
# Weights that a table is learned from.
_SAMPLED = 1 << 20


def solve(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None = None, *, xp: Any = np) -> Solution:
    """Quantize one weight with a table of its own, rounding to nearest; formats with fixed values are clipped.

    The result is never worse than rounding to nearest with the table that it begins with.

    Args:
        weight: [A, K, C], any float type, finite.
        spec: Of several formats the one with the smallest error is taken.
        curvature: Of the layer's inputs (A is 1), or None to weigh all rows alike.
        xp: Array module that computes.
    """
    found = clip.solve(weight, with_tables(weight, spec, curvature, xp=xp), curvature, xp=xp)
    plain = rtn.solve(weight, spec)
    if curvature is not None:
        return clip.better(weight, found, plain, curvature, xp)
    return found if found.squared_error <= plain.squared_error else plain


def with_tables(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None = None, *, xp: Any = np) -> GridSpec:
    """The spec with formats whose tables are learned from a weight; arguments as for `solve`."""
    return replace(
        spec, formats=[_learned(weight, replace(spec, formats=[each]), curvature, xp) for each in spec.formats]
    )


def _learned(weight: np.ndarray, spec: GridSpec, curvature: Curvature | None, xp: Any) -> Format:
    (kind,) = spec.formats
    if not isinstance(kind, Codebook) or not kind.learned:
        return kind
    energy = None if curvature is None else curvature.energy + clip.FLOOR
    # The first scales let the largest weight of each group fit: what is learned on them does not depend on the table.
    grid = lay(kind, *extremes(weight, spec.block), spec)
    for turn in range(_TURNS):
        if turn:
            grid = clip.best_grid(weight, replace(spec, formats=[kind]), None, energy=energy, xp=xp)
        kind = kind.with_levels(lloyd(*_units(weight, grid, energy), kind.values.size))
    return kind


def _units(weight: np.ndarray, grid: Grid, energy: Floats | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights in units of their scales, and what the square of an error of each costs; both flat."""
    a, k, c = weight.shape
    # Whole columns, evenly spaced.
    step = max(1, a * k * c // _SAMPLED)
    a, c = (slice(0, a, step), slice(0, c)) if a >= c else (slice(0, a), slice(0, c, step))
    rows = np.asarray(row_groups(k, grid.block), np.intp)
    scale = np.broadcast_to(grid.scale, (weight.shape[0], grid.scale.shape[1], weight.shape[2]))[a, :, c][:, rows]
    costs = np.square(scale, dtype=np.float64)
    if energy is not None:
        costs *= energy[:, None]
    return (weight[a, :, c] / scale).astype(np.float64).reshape(-1), costs.reshape(-1)


def lloyd(x: np.ndarray, costs: np.ndarray, count: int) -> np.ndarray:
    """The weighted k-means of numbers on a line.

    Args:
        x: float64 [n], finite.
        costs: float64 [n], not negative: what the squared distance of each from its level costs.
        count: Levels, at least 2.

    Returns:
        float64 [count], ascending: found from evenly spaced quantiles on.
    """
    order = np.argsort(x, kind="stable")
    x, costs = x[order], costs[order]
    total, moment = (np.concatenate([[0.0], np.cumsum(each)]) for each in (costs, costs * x))
    largest = float(np.abs(x[[0, -1]]).max()) if len(x) else 0.0
    if not total[-1] * largest > 0:
        return np.linspace(-1, 1, count)
    levels: np.ndarray = x[
        np.searchsorted(total[1:], (np.arange(count) + 0.5) / count * total[-1]).clip(max=len(x) - 1)
    ]
    for _ in range(_STEPS):
        ends = np.searchsorted(x, (levels[1:] + levels[:-1]) / 2, side="right")
        ends = np.concatenate([[0], ends, [len(x)]])
        inside = np.diff(total[ends])
        # A level that is nearest to nothing stays where it is.
        moved = np.divide(np.diff(moment[ends]), inside, out=levels.copy(), where=inside > 0)
        still = np.abs(moved - levels).max() <= _STILL * largest
        levels = np.sort(moved)
        if still:
            break
    return levels
