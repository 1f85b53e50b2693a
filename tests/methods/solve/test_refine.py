"""Scales are the least squares for codes as they stand, and no single code could be better."""

from itertools import pairwise

import numpy as np
import pytest

from onnxq.methods.grid import extremes, lay, row_groups
from onnxq.methods.solve import refine

CASES = [("uint2", 8, "fp32"), ("int3", 10, "fp32"), ("fp4_e2m1", 24, "fp32"), ("fp6_e3m2", None, "fp32")]


@pytest.fixture
def rounded(layer, spec):
    """A weight [K, C], H, the spec, and its grid and codes rounded to nearest."""

    def make(name: str, block: int | None, scale: str):
        weight, h = layer(0, 24, 5)
        chosen = spec(name, block=block, scale=scale)
        grid = lay(chosen.formats[0], *extremes(weight, block), chosen)
        groups = row_groups(24, block)
        zero = None if grid.zero_point is None else grid.zero_point[0][groups]
        codes, _ = grid.quantize(weight[0], grid.scale[0][groups], zero)
        return weight[0], (h / np.trace(h) * 24).astype(np.float32), chosen, grid, codes, groups

    return make


def cost(weight, grid, codes, groups, h) -> float:
    units = grid.format.values[codes].astype(np.float64)
    if grid.zero_point is not None:
        units -= grid.zero_point[0][groups]
    e = units * grid.scale[0][groups] - weight
    return float((h @ e * e).sum())


@pytest.mark.parametrize(("name", "block", "scale"), CASES)
def test_no_other_scale_is_better(name, block, scale, rounded):
    weight, h, chosen, grid, codes, groups = rounded(name, block, scale)
    fitted = refine.fit_scales(weight, grid, codes, groups, h, chosen, np)
    least = cost(weight, fitted, codes, groups, h)
    assert least < 0.999 * cost(weight, grid, codes, groups, h)
    for at in np.ndindex(fitted.scale.shape):
        for factor in (0.98, 1.02):
            moved = fitted.scale.copy()
            moved[at] *= factor
            assert cost(weight, fitted.rescaled(moved, chosen), codes, groups, h) > least * (1 - 1e-4)


@pytest.mark.parametrize(("name", "block", "scale"), CASES)
def test_no_other_code_is_better(name, block, scale, rounded):
    weight, h, _, grid, codes, groups = rounded(name, block, scale)
    costs = [cost(weight, grid, codes, groups, h)]
    for _ in range(30):
        codes, values = refine.descend(weight, grid, codes, groups, h, np)
        costs.append(cost(weight, grid, codes, groups, h))
        if costs[-1] == costs[-2]:
            break
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(costs))
    assert costs[-1] < 0.9 * costs[0]
    e = values - weight
    for row, column in np.ndindex(codes.shape):
        for code in range(len(grid.format.values)):
            other = codes.copy()
            other[row, column] = code
            assert cost(weight, grid, other, groups, h) > costs[-1] * (1 - 1e-5)
    assert np.isclose(float((h @ e * e).sum()), costs[-1], rtol=1e-3)


@pytest.mark.parametrize("scale", ["e8m0", "e4m3", "fp16"])
def test_scales_stay_storable(scale, rounded):
    weight, h, chosen, grid, codes, groups = rounded("fp4_e2m1", 8, scale)
    fitted = refine.fit_scales(weight, grid, codes, groups, h, chosen, np)
    level = 1 if fitted.tensor_scale is None else fitted.tensor_scale
    assert fitted.stored.dtype == grid.stored.dtype
    assert np.array_equal(fitted.scale, fitted.stored.astype(np.float32) * level)
