"""HQQ (half-quadratic quantization): fit each group's grid so that large errors are few, without data.

The norm |e|^p with p < 1 looks past outliers. Half-quadratic splitting alternates between the error that shrinkage
would leave and the grid that is best for the rest, in closed form (Badri and Shaji, 2023). The authors fix the scale
and move a zero point that is a float. `DequantizeLinear` and `MatMulNBits` take codes as zero points, and one that may
move by whole steps alone stays where it is; so here the scale moves with it. A group whose norm did not get smaller
keeps the grid that it had.
"""

from dataclasses import replace
from typing import cast

import numpy as np

from onnxq.errors import UsageError
from onnxq.formats import Integer
from onnxq.formats.base import Floats
from onnxq.methods.grid import Grid, GridSpec, extremes, lay, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve import rtn

# As in the authors' code, but for beta: there an error counts in units of the weights, here in units of the scale, so
# that the size of the weights makes no difference.
_P = 0.7
_BETA = 10.0
_KAPPA = 1.01
_STEPS = 20
# So that |0|^(p - 1) stays finite.
_TINY = np.float32(1e-8)


def solve(weight: np.ndarray, spec: GridSpec) -> Solution:
    """Quantize one weight.

    Args:
        weight: [A, K, C], any float type, finite.
        spec: Integers with zero points; of several formats the first is taken.

    Raises:
        UsageError: The formats have no zero point.
    """
    kind = spec.formats[0]
    if spec.symmetric or not isinstance(kind, Integer):
        raise UsageError(f"method hqq fits zero points, which {kind.name} has not: take integers, symmetric: false")
    grid = lay(kind, *extremes(weight, spec.block), spec)
    exact = weight.astype(np.float32, copy=False)
    rows = np.asarray(row_groups(weight.shape[1], spec.block), np.intp)
    best, least = grid, _norms(exact, grid, rows)
    beta = np.float32(_BETA)
    for _ in range(_STEPS):
        grid = _step(exact, grid, rows, beta, spec)
        norms = _norms(exact, grid, rows)
        better = norms < least
        least = np.where(better, norms, least)
        best = replace(
            best,
            stored=np.where(better, grid.stored, best.stored),
            scale=np.where(better, grid.scale, best.scale),
            zero_point=np.where(better, _zero(grid), _zero(best)),
        )
        beta *= np.float32(_KAPPA)
    return rtn.round_to(weight, best)


def _step(weight: Floats, grid: Grid, rows: np.ndarray, beta: np.float32, spec: GridSpec) -> Grid:
    """One alternation: shrink the errors, then fit zero points and scales to what is left."""
    kind, zero, scale = cast("Integer", grid.format), _zero(grid)[:, rows], grid.scale[:, rows]
    units = weight / scale
    steps = np.clip(np.rint(units + zero), kind.low, kind.high) - zero
    error = units - steps
    size = np.abs(error)
    left = units - np.sign(error) * np.maximum(size - np.maximum(size, _TINY) ** np.float32(_P - 1) / beta, 0)
    mean = _sums(steps - left, rows, grid) / _sums(np.ones_like(left), rows, grid)
    moved = np.clip(np.rint(_zero(grid) + mean), kind.low, kind.high)
    steps += zero - moved[:, rows]
    squares = _sums(steps * steps, rows, grid)
    factor = np.divide(_sums(steps * left, rows, grid), squares, out=np.ones_like(squares), where=squares > 0)
    # Out of reach of a group whose codes are nearly all zero.
    stored = spec.scale_type.store(grid.scale * np.clip(factor, 0.5, 2))
    return replace(grid, stored=stored, scale=stored.astype(np.float32), zero_point=moved.astype(np.float32))


def _zero(grid: Grid) -> Floats:
    if grid.zero_point is None:
        raise ValueError(grid.format.name)
    return grid.zero_point


def _norms(weight: Floats, grid: Grid, rows: np.ndarray) -> Floats:
    """The sum of |e|^p of each group."""
    _, values = grid.quantize(weight, grid.scale[:, rows], _zero(grid)[:, rows])
    return _sums(np.abs(values - weight) ** np.float32(_P), rows, grid)


def _sums(values: Floats, rows: np.ndarray, grid: Grid) -> Floats:
    """The sum over each group: [A, G, C], or [1, 1, 1]."""
    if grid.block is None:
        return np.full((1, 1, 1), values.sum(), np.float32)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.asarray(np.add.reduceat(values, starts, axis=1), np.float32)
