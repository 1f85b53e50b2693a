"""Clip search: let each group shrink (or grow) its range until the error that the layer makes is smallest.

The error of a group is e' H e over its own rows, H = X'X of the layer's inputs, or e'e without statistics. Over formats
of one width and a wide range this is the joint search of format and exponent bias of LLM-FP4 (arXiv 2310.16836, section
4.1); a factor on the scale is a shift of the bias, and searching it additively in octaves does not depend on the size
of the weights, as the range of multiples of the bias in the paper does.
"""

from collections.abc import Sequence

import numpy as np

from onnxq.formats.base import Floats
from onnxq.methods.grid import Grid, GridSpec, extremes, group_slices, lay
from onnxq.methods.solution import Solution
from onnxq.methods.solve import rtn

# Factors on the range, from no clipping to half (AWQ, arXiv 2306.00978: 20 steps).
SHRINK = tuple(1 - 0.025 * step for step in range(21))
# LLM-FP4's range of biases, relative to the one that lets the largest weight fit: from 0.3 octaves above to 2.5 below.
OCTAVES = tuple(2.0**-shift for shift in np.linspace(-0.3, 2.5, 57))


def solve(
    weight: np.ndarray, spec: GridSpec, hessian: np.ndarray | None = None, factors: Sequence[float] = SHRINK
) -> Solution:
    """Quantize one weight with the best range of each group, rounding to nearest.

    Args:
        weight: [A, K, C], any float type, finite.
        spec: Of several formats the one with the smallest error in all is taken.
        hessian: [K, K] X'X of the inputs, or None to weigh all rows alike.
        factors: Tried on the range of every group.
    """
    return rtn.round_to(weight, best_grid(weight, spec, hessian, factors))


def best_grid(
    weight: np.ndarray, spec: GridSpec, hessian: np.ndarray | None = None, factors: Sequence[float] = SHRINK
) -> Grid:
    """The grid that `solve` rounds to; arguments as there."""
    exact = weight.astype(np.float32, copy=False)
    if hessian is not None:
        # Only the proportions count, and float32 has room for them once the mean is one.
        hessian = (hessian / max(float(np.diag(hessian).mean()), np.finfo(np.float64).tiny)).astype(np.float32)
    low, high = extremes(weight, spec.block)
    best: tuple[float, Grid] | None = None
    for kind in spec.formats:
        chosen, least = np.ones_like(high), np.full(high.shape, np.inf)
        for factor in factors:
            grid = lay(kind, low * np.float32(factor), high * np.float32(factor), spec)
            error = _group_errors(exact, grid, hessian)
            better = error < least
            chosen[better], least[better] = factor, error[better]
        if best is None or least.sum() < best[0]:
            best = float(least.sum()), lay(kind, low * chosen, high * chosen, spec)
    if best is None:
        raise ValueError("no formats")
    return best[1]


def _group_errors(weight: Floats, grid: Grid, hessian: np.ndarray | None) -> np.ndarray:
    """The error of each group, float64 of the shape of the scales."""
    errors = np.zeros(grid.scale.shape)
    for group, rows in group_slices(weight.shape[1], grid.block):
        part = weight[:, rows]
        zero = None if grid.zero_point is None else grid.zero_point[:, group : group + 1]
        _, values = grid.quantize(part, grid.scale[:, group : group + 1], zero)
        values -= part
        weighted = values if hessian is None else hessian[rows, rows] @ values
        error = (weighted * values).sum(axis=1, dtype=np.float64)
        if grid.block is None:
            errors += error.sum()
        else:
            errors[:, group] = error
    return errors
