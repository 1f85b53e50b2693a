"""ERQ's Wqer (arXiv 2407.06794, section 3.3): round half of the channels left, flip, and let the others make up.

Half of the input channels that are not rounded yet are rounded to nearest, all at once. Then single weights of a column
go to their other neighbour on the grid, as long as that lowers the error of these channels (the paper's rounding
refinement, one flip at a time). What error is left the other half makes up for, by a ridge regression. So K channels
take log2 K steps where GPTQ takes K, and flips stand for what GPTQ gains by finer ones.

ERQ's other part, Aqer, moves the weight before it is rounded (`onnxq.methods.correct.aqer`).
"""

from typing import Any

import numpy as np

from onnxq.methods.backend import to_host
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import Grid, GridSpec, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve import clip, rtn

DAMPING = 0.01
# Of one column, for each half: the paper's number.
_FLIPS = 100


def solve(
    weight: np.ndarray, spec: GridSpec, curvature: Curvature, *, damping: float = DAMPING, xp: Any = np
) -> Solution:
    """Quantize one weight; never worse than rounding it to nearest, in the error of the layer.

    Args:
        weight: [1, K, C], any float type, finite.
        spec: Of several formats the one is taken whose rounded grid has the smallest error weighted by the energies of
            the input channels.
        curvature: Of the layer's inputs.
        damping: Of the ridge regression: share of the mean energy that is added to each.
        xp: Array module that computes.
    """
    exact = weight[0].astype(np.float32, copy=False)
    # By falling energy, as in GPTQ: channels that matter are rounded while many others can make up for them.
    order = np.argsort(-curvature.energy, kind="stable")
    back, groups = np.argsort(order), np.asarray(row_groups(len(exact), spec.block), np.intp)[order]
    grid = clip.best_grid(weight, spec, None, None, energy=curvature.energy + clip.FLOOR, xp=xp)
    there, wanted = grid.on(xp), xp.asarray(exact[order])
    h = curvature.damped(order, damping, xp).astype(xp.float32)
    work, codes = wanted.copy(), xp.empty(wanted.shape, xp.uint8)
    start, k = 0, len(exact)
    while start < k:
        end = start + (k - start + 1) // 2
        rows, rest = slice(start, end), slice(end, k)
        codes[rows], values = flip(work[rows], there, groups[rows], h[rows, rows], xp)
        if end < k:
            work[rest] -= xp.linalg.solve(h[rest, rest], h[rest, rows] @ (values - work[rows]))
        work[rows], start = values, end
    error = wanted - work
    found = grid.solution(to_host(codes)[back][None], float(xp.vdot(error, error)), float(np.vdot(exact, exact)))
    return clip.better(weight, found, rtn.solve(weight, spec), curvature, xp)


def flip(weight: Any, grid: Grid, groups: np.ndarray, h: Any, xp: Any = np, *, most: int = _FLIPS) -> tuple[Any, Any]:
    """Round to nearest, then to the other neighbour where that lowers e'He, one weight of each column at a time.

    Args:
        weight: [K, C].
        grid: On the device of `weight`.
        groups: Whose scale each of the K rows has.
        h: H, [K, K].
        xp: Array module that computes.
        most: Flips of a column.

    Returns:
        Codes, uint8, and their values, both [K, C]; no single flip of the last kind lowers e'He, or `most` were made.
    """
    scale = grid.scale[0][groups]
    zero = None if grid.zero_point is None else grid.zero_point[0][groups]
    codes, values = grid.quantize(weight.copy(), scale, zero)
    # Each number once, also where a format has zeros of two signs.
    levels, first = np.unique(grid.format.values, return_index=True)
    levels, first = levels[np.isfinite(levels)], first[np.isfinite(levels)]
    steps, firsts = xp.asarray(levels), xp.asarray(first.astype(np.uint8))
    place = xp.searchsorted(steps, xp.asarray(grid.format.values)[codes])
    slope, diagonal, columns = h @ (values - weight), xp.diag(h)[:, None], xp.arange(weight.shape[1])
    for _ in range(most):
        # A weight that was rounded up can go down, and the other way.
        other = xp.clip(place - xp.sign(values - weight).astype(place.dtype), 0, len(levels) - 1)
        change = (steps[other] - (0 if zero is None else zero)) * scale - values
        gain = change * (2 * slope + diagonal * change)
        best = gain.argmin(axis=0)
        lower = gain[best, columns] < 0
        if not bool(lower.any()):
            break
        at, these = best[lower], columns[lower]
        moved = change[at, these]
        values[at, these] += moved
        place[at, these] = other[at, these]
        codes[at, these] = firsts[place[at, these]]
        slope[:, these] += h[:, at] * moved
    return codes, values
