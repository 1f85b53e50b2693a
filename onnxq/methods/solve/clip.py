"""Clip search: let each group shrink its range until the error that the layer makes is smallest.

The error of a group is e'He over its own rows, with H = X'X of the layer's inputs, or e'e without statistics. Zero
points let both ends of a range move by themselves. Over formats of one width and a wide range this is the joint search
of format and exponent bias of LLM-FP4 (arXiv 2310.16836, section 4.1): a factor on the scale is a shift of the bias. It
is searched additively, in octaves; the paper's multiples of the bias depend on the size of the weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.formats import Integer
from onnxq.formats.base import Floats
from onnxq.methods.backend import chunk_size, module_of, to_host
from onnxq.methods.chunks import chunks
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import Grid, GridSpec, extremes, group_slices, lay
from onnxq.methods.solution import Solution
from onnxq.methods.solve import rtn

Pairs = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Search:
    """Factors on the low and the high end of a range.

    Attributes:
        first: All tried on every group.
        moves: Then each is multiplied onto the best of the group so far.
    """

    first: Pairs
    moves: Pairs = ()


def _around(*steps: float) -> Pairs:
    """A step up or down at one end, for each size of step."""
    return tuple(
        pair for step in steps for pair in ((1 - step, 1.0), (1.0, 1 - step), (1 + step, 1.0), (1.0, 1 + step))
    )


_HALVES = tuple(1 - 0.1 * step for step in range(6))
NONE = Search(((1.0, 1.0),))
# Down to half the range (AWQ, arXiv 2306.00978), and up by a quarter: a float's steps may fit a wider one better.
SHRINK = Search(
    tuple((1 - 0.05 * step, 1 - 0.05 * step) for step in range(-5, 11)),
    tuple((1 + step, 1 + step) for step in (-0.025, 0.025, -0.0125, 0.0125)),
)
ENDS = Search(tuple((low, high) for low in _HALVES for high in _HALVES), _around(0.05, 0.025))
# LLM-FP4's range of biases, from 0.3 octaves above the one that lets the largest weight fit to 2.5 below.
OCTAVES = Search(
    ((1.0, 1.0), *((2.0**-shift, 2.0**-shift) for shift in np.linspace(-0.3, 2.5, 15))),
    tuple((2.0**shift, 2.0**shift) for shift in (-0.1, 0.1, -0.05, 0.05)),
)

# Of the mean energy, added to each channel: what was silent on the calibration data may not stay so.
FLOOR = np.float32(0.01)


def solve(
    weight: np.ndarray,
    spec: GridSpec,
    curvature: Curvature | None = None,
    search: Search | None = None,
    *,
    xp: Any = np,
) -> Solution:
    """Quantize one weight with the best range of each group, rounding to nearest.

    The result is never worse than plain rounding to nearest in the error of the whole layer, which the errors of groups
    by themselves do not add up to.

    Args:
        weight: [A, K, C], any float type, finite.
        spec: Of several formats the one with the smallest error in all is taken.
        curvature: Of the layer's inputs (A is 1), or None to weigh all rows alike.
        search: By default `ENDS` for grids with a zero point and `SHRINK` for others.
        xp: Array module that computes.
    """
    found = rtn.round_to(weight, best_grid(weight, spec, curvature, search, xp=xp))
    return found if curvature is None else better(weight, found, rtn.solve(weight, spec), curvature, xp)


def better(weight: np.ndarray, found: Solution, plain: Solution, curvature: Curvature, xp: Any = np) -> Solution:
    """`found`, unless `plain` leaves a smaller error e'He of the layer."""
    exact = weight[0].astype(np.float32, copy=False)
    errors = [curvature.error(xp.asarray(each.decode()[0] - exact), xp) for each in (found, plain)]
    return found if errors[0] <= errors[1] else plain


def best_grid(
    weight: np.ndarray,
    spec: GridSpec,
    curvature: Curvature | None = None,
    search: Search | None = None,
    *,
    energy: Floats | None = None,
    xp: Any = np,
) -> Grid:
    """The grid that `solve` rounds to; arguments as there.

    With `energy`, [K], the squared error of a row costs that much by itself, whatever the other rows do: what a solver
    wants that makes up for one error by the next. H does not matter then.
    """
    exact = xp.asarray(weight.astype(np.float32, copy=False))
    low, high = extremes(weight, spec.block)
    best: tuple[float, Grid] | None = None
    for kind in spec.formats:
        chosen = _Chosen(low, high)
        zero_points = not spec.symmetric and isinstance(kind, Integer)
        for factors in chosen.candidates(search or (ENDS if zero_points else SHRINK)):
            grid = lay(kind, low * factors[0], high * factors[1], spec)
            chosen.take(factors, _errors(exact, grid, curvature, energy))
        total = float(chosen.least.sum())
        if best is None or total < best[0]:
            best = total, lay(kind, low * chosen.factors[0], high * chosen.factors[1], spec)
    if best is None:
        raise ValueError("no formats")
    return best[1]


class _Chosen:
    """The best factors of each group so far, and their errors."""

    def __init__(self, low: Floats, high: Floats) -> None:
        self.factors = np.ones_like(low), np.ones_like(high)
        self.least = np.full(high.shape, np.inf)

    def candidates(self, search: Search) -> Iterator[tuple[Floats, Floats]]:
        for low, high in search.first:
            yield np.full_like(self.factors[0], low), np.full_like(self.factors[1], high)
        for low, high in search.moves:
            yield self.factors[0] * np.float32(low), self.factors[1] * np.float32(high)

    def take(self, factors: tuple[Floats, Floats], errors: np.ndarray) -> None:
        improved = errors < self.least
        np.copyto(self.least, errors, where=improved)
        for mine, theirs in zip(self.factors, factors, strict=True):
            np.copyto(mine, theirs, where=improved)


def _errors(weight: Any, grid: Grid, curvature: Curvature | None, energy: Floats | None) -> np.ndarray:
    """The error of each group, float64 of the shape of the scales."""
    if curvature is not None and energy is None:
        return _joint_errors(weight, grid, curvature)
    xp = module_of(weight)
    grid, errors = grid.on(xp), xp.zeros(grid.scale.shape)
    costs = None if energy is None else xp.asarray(energy)
    for chunk in chunks(weight.shape, grid.block, chunk_size(weight)):
        exact = chunk.of(weight)
        zero_point = None if grid.zero_point is None else chunk.scale(grid.zero_point)
        _, values = grid.quantize(exact, chunk.scale(grid.scale), zero_point)
        values -= exact
        values *= values
        if costs is not None:
            values *= costs[chunk.part[1]].reshape(1, -1, chunk.rows, 1)
        total = values.sum(axis=2)
        errors[chunk.groups] += total if grid.block is not None else total.sum()
    return to_host(errors)


def _joint_errors(weight: Any, grid: Grid, curvature: Curvature) -> np.ndarray:
    """As `_errors`, with what the errors of the rows of a group make together."""
    xp = module_of(weight)
    grid, errors = grid.on(xp), xp.zeros(grid.scale.shape)
    h = xp.asarray(curvature.matrix)
    for group, rows in group_slices(weight.shape[1], grid.block):
        part, here = weight[:, rows], slice(group, group + 1)
        zero_point = None if grid.zero_point is None else grid.zero_point[:, here]
        _, values = grid.quantize(part, grid.scale[:, here], zero_point)
        values -= part
        total = ((h[rows, rows] @ values + FLOOR * values) * values).sum(axis=1)
        errors[:, group] = total if grid.block is not None else total.sum()
    return to_host(errors)
