"""After rounding: scales by least squares, and codes one after the other, while the error e'He of the layer falls.

Both are exact: for given codes the best scales of a column are the solution of as many equations as it has groups, and
for given scales and all other codes the best code of a weight is the one nearest to where the error's derivative is
zero (coordinate descent; as in QuantEase, arXiv 2309.01885, and CDQuant, arXiv 2406.17542).
"""

from typing import Any

from onnxq.formats.base import Codes, Floats
from onnxq.methods.grid import Grid, GridSpec
from onnxq.methods.solve.in_turn import BLOCK, Rows, round_block

# Of the mean energy of the groups of a column: what no weight of a group tells stays where it was.
_RIDGE = 1e-4
# By how much a scale may change at a time.
_FACTOR = 2.0


def fit_scales(weight: Any, grid: Grid, codes: Any, groups: list[int], h: Any, spec: GridSpec, xp: Any) -> Grid:
    """The grid with the scales that are best for codes as they stand.

    Args:
        weight: [K, C].
        grid: On the device of `weight`.
        codes: uint8 [K, C].
        groups: Whose scale each of the K rows has.
        h: H, float64 [K, K], damped.
        spec: How scales are stored.
        xp: Array module that computes.
    """
    member = xp.zeros((grid.scale.shape[1], len(groups)))
    member[xp.asarray(groups), xp.arange(len(groups))] = 1
    units = _units(grid, codes, groups, xp).astype(xp.float64)
    right = member @ (units * (h @ weight))
    of_group = [xp.flatnonzero(row) for row in member]
    left = xp.stack([member @ (units * (h[:, rows] @ units[rows])) for rows in of_group])
    old = grid.scale[0]
    if grid.block is None:
        fitted = xp.full((1, 1), float(right.sum()) / max(float(left.sum()), 1e-30))
    else:
        # One system of equations a column.
        systems, wanted = left.transpose(2, 0, 1), right.T
        ridge = _RIDGE * xp.diagonal(systems, axis1=1, axis2=2).mean(axis=1)[:, None] + 1e-30
        systems = systems + xp.eye(len(member)) * ridge[:, :, None]
        fitted = xp.linalg.solve(systems, (wanted + ridge * old.T)[:, :, None])[:, :, 0].T
    return grid.rescaled(xp.clip(fitted, old / _FACTOR, old * _FACTOR)[None], spec)


def descend(weight: Any, grid: Grid, codes: Any, groups: list[int], h: Any, xp: Any) -> tuple[Codes, Floats]:
    """Give each weight in turn the code that is best as all others stand.

    Args:
        weight: [K, C].
        grid: On the device of `weight`.
        codes: uint8 [K, C].
        groups: Whose scale each row has.
        h: H, float64 [K, K], damped.
        xp: Array module that computes.

    Returns:
        New codes and values; e'He is not larger than before.
    """
    codes, quantize = codes.copy(), Rows(grid, groups)
    values = _units(grid, codes, groups, xp) * grid.scale[0][groups]
    errors, energy = (values - weight).astype(xp.float64), xp.diag(h)
    for start in range(0, len(weight), BLOCK):
        rows = slice(start, start + BLOCK)
        # What an error means in units of a row's own.
        shares = h[rows] / xp.where(energy > 0, energy, 1)[rows, None]
        pull = -(shares @ errors).astype(xp.float32)
        coupling = xp.ascontiguousarray(shares[:, rows].T.astype(xp.float32))
        codes[rows], values[rows] = round_block(values[rows], pull, coupling, quantize, start, xp)
        errors[rows] = values[rows] - weight[rows]
    return codes, values


def _units(grid: Grid, codes: Any, groups: list[int], xp: Any) -> Any:
    """[K, C]: what codes mean, less zero points, before they are scaled."""
    units = xp.asarray(grid.format.values)[codes]
    return units if grid.zero_point is None else units - grid.zero_point[0][groups]
