"""GPTQ (arXiv 2210.17323): round one input channel after the other, and let the ones to come make up for the error.

Over any grid: integers and floats, groups and channels. Channels go by falling energy (`act_order`), but their groups
keep their places in the file, so the scales are laid before the first rounding ("static groups").

The paper updates the weights to come with rows of the Cholesky factor of H^-1. The same numbers come from the factor of
H itself, without an inverse: what a channel has to make up for is the sum of the errors before it, weighted by a column
of R in H = R D R' (QuIP, arXiv 2307.13304, theorem 6).
"""

from dataclasses import replace
from typing import Any

import numpy as np

from onnxq.methods.backend import to_host
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import Grid, GridSpec, row_groups
from onnxq.methods.solution import Solution
from onnxq.methods.solve import clip, refine, rtn
from onnxq.methods.solve.in_turn import BLOCK, QuantizeRow, Rows, round_block

DAMPING = 0.01
# Of the old values, when a grid is laid anew: they swing less from one turn to the next.
_MOMENTUM = np.float32(0.5)


def solve(
    weight: np.ndarray,
    spec: GridSpec,
    curvature: Curvature,
    *,
    act_order: bool = True,
    damping: float = DAMPING,
    search: clip.Search | None = None,
    turns: int | None = None,
    sweeps: int = 4,
    xp: Any = np,
) -> Solution:
    """Quantize one weight; never worse than rounding it to nearest, in the error of the layer.

    What is rounded in the end is not the weight but the weight with all that makes up for earlier errors. At two or
    three bits that lies far from the weight, so a grid that suits the weight does not suit it: after each turn the grid
    is laid anew for the values that were rounded. The best of all turns is refined, scales and codes by turns.

    Args:
        weight: [1, K, C], any float type, finite: K input channels, C output channels.
        spec: Of several formats the one is taken whose rounded grid has the smallest error weighted by the energies of
            the input channels.
        curvature: Of the layer's inputs.
        act_order: Go through input channels by falling energy.
        damping: Share of the mean energy that is added to each.
        search: Ranges that are tried for each group, as in `clip`; `clip.NONE` takes the largest magnitude.
        turns: How often all is rounded; by default twice for formats of up to three bits, once for others.
        sweeps: How often scales are fitted to codes, and codes to scales.
        xp: Array module that computes: numpy, or CuPy on a GPU.
    """
    exact = weight[0].astype(np.float32, copy=False)
    order, feedback, costs = curvature.feedback(act_order=act_order, damping=damping, xp=xp)
    back, groups = np.argsort(order), np.asarray(row_groups(len(exact), spec.block), np.intp)[order].tolist()
    ordered, feedback = xp.asarray(exact[order]), xp.asarray(feedback)
    cost = Cost(ordered, feedback, xp.asarray(costs[order]), xp)
    grid = clip.best_grid(weight, spec, None, search, energy=curvature.energy + clip.FLOOR, xp=xp)
    best, seen = _Best(), exact
    count = turns or (2 if grid.format.bits <= 3 else 1)
    for turn in range(count):
        codes, values = round_in_turn(ordered, Rows(grid.on(xp), groups), feedback, xp)
        best.take(cost.of(values), grid, codes, values)
        if turn + 1 < count:
            seen = _MOMENTUM * seen + (1 - _MOMENTUM) * to_host(ordered + cost.carried(values))[back]
            grid = clip.best_grid(seen[None], replace(spec, formats=[grid.format]), None, search, energy=costs, xp=xp)
    grid, codes, values = best.found
    h = curvature.damped(order, damping, xp) if sweeps else None
    for _ in range(sweeps):
        grid = refine.fit_scales(ordered, grid.on(xp), codes, groups, h, spec, xp)
        codes, values = refine.descend(ordered, grid.on(xp), codes, groups, h, xp)
        best.take(cost.of(values), grid, codes, values)
    grid, codes, values = best.found
    error = ordered - values
    found = grid.solution(to_host(codes)[back][None], float(xp.vdot(error, error)), float(np.vdot(exact, exact)))
    return clip.better(weight, found, rtn.solve(weight, spec), curvature, xp)


class _Best:
    """The codes and their grid that cost least so far."""

    def __init__(self) -> None:
        self._least = np.inf
        self._found: tuple[Grid, Any, Any] | None = None

    def take(self, cost: float, grid: Grid, codes: Any, values: Any) -> None:
        if cost < self._least or self._found is None:
            self._least, self._found = cost, (grid, codes, values)

    @property
    def found(self) -> tuple[Grid, Any, Any]:
        if self._found is None:
            raise ValueError("nothing was rounded")
        return self._found


class Cost:
    """What values in the place of a weight cost: the sum of e'He, damped."""

    def __init__(self, weight: Any, feedback: Any, costs: Any, xp: Any) -> None:
        self._weight = weight
        self._later = xp.triu(feedback, 1).T.astype(xp.float64)
        self._costs = costs
        self._xp = xp

    def carried(self, values: Any) -> Any:
        """What each row has to make up for: float32 [K, C]."""
        return (self._later @ (self._weight - values)).astype(self._xp.float32)

    def of(self, values: Any) -> float:
        """What is left in each row, at its cost."""
        left = self._weight - values + self.carried(values)
        return float((left * left * self._costs[:, None]).sum(dtype=self._xp.float64))


def round_in_turn(weight: Any, quantize: QuantizeRow, feedback: Any, xp: Any) -> tuple[Any, Any]:
    """Codes and their values, both [K, C], of rows that each make up for the errors of those before."""
    codes, values = xp.empty(weight.shape, xp.uint8), xp.empty_like(weight)
    errors = xp.empty(weight.shape, xp.float64)
    for start in range(0, len(weight), BLOCK):
        rows = slice(start, start + BLOCK)
        pull = (feedback[:start, rows].T.astype(xp.float64) @ errors[:start]).astype(xp.float32)
        codes[rows], values[rows] = round_block(weight[rows], pull, feedback[rows, rows], quantize, start, xp)
        errors[rows] = weight[rows] - values[rows]
    return codes, values
