"""GPTQ (arXiv 2210.17323): round one input channel after the other, and let the ones to come make up for the error.

Over any grid: integers and floats, groups and channels. With channels in the order of their energy (`act_order`) the
groups keep their places in the file: their scales are laid before the first rounding ("static groups").
"""

import numpy as np

from onnxq.errors import NonFiniteError
from onnxq.formats.base import Floats
from onnxq.methods.grid import Grid, GridSpec, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve.clip import SHRINK, best_grid

# Columns whose update of the rest is put off, so that it becomes one matrix product.
_BLOCK = 128


def solve(
    weight: np.ndarray,
    spec: GridSpec,
    hessian: np.ndarray,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    clip: bool = True,
) -> Solution:
    """Quantize one weight.

    Args:
        weight: [1, K, C], any float type, finite: K input channels, C output channels.
        spec: Of several formats the one is taken whose rounded grid has the smallest error weighted by `hessian`.
        hessian: [K, K] X'X of the layer's inputs, any positive multiple of it.
        act_order: Go through input channels by falling energy.
        damping: Share of the mean of the diagonal that is added to it.
        clip: Lay the grid by clip search, not by the largest magnitude.

    Raises:
        NonFiniteError: The statistics hold NaN or Inf.
    """
    if not np.isfinite(hessian).all():
        raise NonFiniteError("the statistics hold NaN or Inf")
    grid = best_grid(weight, spec, hessian, SHRINK if clip else (1.0,))
    exact = weight[0].astype(np.float32)
    k = exact.shape[0]
    h = hessian.astype(np.float64)
    energy = np.diag(h).copy()
    # A channel that is never active says nothing; its weights are rounded by themselves.
    h[np.diag_indices(k)] = np.where(energy > 0, energy, 1)
    order = np.argsort(-energy, kind="stable") if act_order else np.arange(k)
    upper = _inverse_cholesky(h[np.ix_(order, order)], damping)
    codes, decoded = _round_in_turn(exact[order], grid, [row_groups(k, spec.block)[row] for row in order], upper)
    back = np.empty(k, np.intp)
    back[order] = np.arange(k)
    error = decoded[back] - exact
    squared = float(np.vdot(error, error)), float(np.vdot(exact, exact))
    return grid.solution(codes[back][None], *squared)


def _inverse_cholesky(h: np.ndarray, damping: float) -> Floats:
    """U with U'U = H^-1, upper triangular; damped more where H is too close to singular."""
    mean = float(np.diag(h).mean())
    for _ in range(6):
        damped = h + damping * mean * np.eye(len(h))
        try:
            np.linalg.cholesky(damped)
            inverse = np.linalg.inv(damped)
            return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
        except np.linalg.LinAlgError:
            damping *= 10
    return np.eye(len(h), dtype=np.float32)


def _round_in_turn(weight: Floats, grid: Grid, groups: list[int], upper: Floats) -> tuple[np.ndarray, Floats]:
    """Codes and decoded weights, [K, C] in the given order; `groups` says which scales each row has."""
    work, k = weight.copy(), len(weight)
    codes, decoded = np.empty(weight.shape, np.uint8), np.empty_like(weight)
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        errors = np.empty((end - start, weight.shape[1]), np.float32)
        for row in range(start, end):
            zero = None if grid.zero_point is None else grid.zero_point[0, groups[row]]
            codes[row], decoded[row] = grid.quantize(work[row], grid.scale[0, groups[row]], zero)
            errors[row - start] = (work[row] - decoded[row]) / upper[row, row]
            work[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - start])
        work[end:] -= upper[start:end, end:].T @ errors
    return codes, decoded
