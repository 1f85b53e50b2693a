"""GPTQ (arXiv 2210.17323): round one input channel after the other, and let the ones to come make up for the error.

Over any grid: integers and floats, groups and channels. Channels go by falling energy (`act_order`), but their groups
keep their places in the file, so the scales are laid before the first rounding ("static groups").

The paper updates the weights to come with rows of the Cholesky factor of H^-1. The same numbers come from the factor of
H itself, without an inverse: what a channel has to make up for is the sum of the errors before it, weighted by a column
of R in H = R D R' (QuIP, arXiv 2307.13304, theorem 6).
"""

from typing import Any

import numpy as np

from onnxq.formats.base import Floats
from onnxq.methods.backend import to_host
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import Grid, GridSpec, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve import clip, rtn

# Channels between two matrix products that bring in the errors of all channels before.
_BLOCK = 64

DAMPING = 0.01


def solve(
    weight: np.ndarray,
    spec: GridSpec,
    curvature: Curvature,
    *,
    act_order: bool = True,
    damping: float = DAMPING,
    search: clip.Search | None = None,
    xp: Any = np,
) -> Solution:
    """Quantize one weight; never worse than rounding it to nearest, in the error of the layer.

    Args:
        weight: [1, K, C], any float type, finite: K input channels, C output channels.
        spec: Of several formats the one is taken whose rounded grid has the smallest error weighted by the energies of
            the input channels.
        curvature: Of the layer's inputs.
        act_order: Go through input channels by falling energy.
        damping: Share of the mean energy that is added to each.
        search: Ranges that are tried for each group, as in `clip`; `clip.NONE` takes the largest magnitude.
        xp: Array module that computes: numpy, or CuPy on a GPU.
    """
    grid = clip.best_grid(weight, spec, curvature, search, joint=False, xp=xp)
    exact = weight[0].astype(np.float32, copy=False)
    order, feedback = curvature.feedback(act_order=act_order, damping=damping, xp=xp)
    groups = np.asarray(row_groups(len(exact), spec.block), np.intp)[order]
    codes, errors = _round_in_turn(xp.asarray(exact[order]), grid.on(xp), groups.tolist(), xp.asarray(feedback))
    back = np.argsort(order)
    squared = float(np.vdot(errors, errors)), float(np.vdot(exact, exact))
    return clip.better(weight, grid.solution(codes[back][None], *squared), rtn.solve(weight, spec), curvature, xp)


def _round_in_turn(weight: Any, grid: Grid, groups: list[int], feedback: Any) -> tuple[np.ndarray, Floats]:
    """Codes, and weights minus their values, both [K, C]; `groups` says whose scales each row has."""
    work, k = weight.copy(), len(weight)
    codes, errors = np.empty_like(weight, np.uint8), np.empty_like(weight)
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        work[start:end] += feedback[:start, start:end].T @ errors[:start]
        for row in range(start, end):
            zero = None if grid.zero_point is None else grid.zero_point[0, groups[row]]
            codes[row], values = grid.quantize(work[row], grid.scale[0, groups[row]], zero)
            errors[row] = weight[row] - values
            work[row + 1 : end] += feedback[row, row + 1 : end, None] * errors[row]
    return to_host(codes), to_host(errors)
