"""ERQ's Wqer: flips that lower the error, a ridge regression for the rest, and never worse than rounding to nearest."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.formats import get_format, get_scale_type
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec, extremes, lay
from onnxq.methods.solve import SOLVERS, clip, erq, gptq, rtn

FORMATS = ("uint2", "int3", "uint4", "fp4_e2m1", "fp4_e3m0", "nf4")


def grid_of(weight: np.ndarray, name: str, block: int):
    spec = GridSpec([get_format(name)], block, get_scale_type("fp32"), symmetric=not name.startswith("uint"))
    return lay(spec.formats[0], *extremes(weight[None], block), spec)


def cost(h: np.ndarray, difference: np.ndarray) -> np.ndarray:
    wide = difference.astype(np.float64)
    return np.einsum("kc,kl,lc->c", wide, h.astype(np.float64), wide)


@given(st.integers(0, 10_000), st.sampled_from(FORMATS), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_flip_lowers_the_error_and_codes_are_neighbours(seed, name, k, block):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((k + 2, k)) @ rng.standard_normal((k, k))
    weight, h = rng.standard_normal((k, 4)).astype(np.float32), (x.T @ x).astype(np.float32)
    grid, groups = grid_of(weight, name, block), np.arange(k) // block
    scale, zero = grid.scale[0][groups], 0 if grid.zero_point is None else grid.zero_point[0][groups]
    levels = np.unique(grid.format.values)
    before = None
    for most in range(6):
        codes, values = erq.flip(weight, grid, groups, h, most=most)
        np.testing.assert_allclose((grid.format.values[codes] - zero) * scale, values, rtol=1e-5, atol=1e-6)
        # Between each weight and its value lies no other level, unless the weight lies beyond all of them.
        units = np.clip(weight / scale + zero, levels[0], levels[-1])
        at = np.searchsorted(levels, grid.format.values[codes])
        assert (levels[np.maximum(at - 1, 0)] <= units + 1e-4).all()
        assert (levels[np.minimum(at + 1, len(levels) - 1)] >= units - 1e-4).all()
        now = cost(h, values - weight)
        assert before is None or (now <= before * (1 + 1e-4) + 1e-5).all()
        before = now


def test_no_single_flip_is_left():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((30, 5)) @ rng.standard_normal((5, 5))
    weight, h = rng.standard_normal((5, 1)).astype(np.float32), (x.T @ x).astype(np.float32)
    grid, groups = grid_of(weight, "uint4", 5), np.zeros(5, np.intp)
    _, found = erq.flip(weight, grid, groups, h)
    least = cost(h, found - weight)[0]
    # The two neighbours of each weight on the grid, in all combinations.
    units = weight / grid.scale[0] + grid.zero_point[0]
    ends = [np.clip(np.floor(units) + up, 0, 15) for up in (0, 1)]
    choices = [(np.array(ends)[list(pick), range(5)] - grid.zero_point[0]) * grid.scale[0] for pick in
               itertools.product((0, 1), repeat=5)]  # fmt: skip
    costs = np.array([cost(h, each - weight)[0] for each in choices])
    at = int(np.argmin([np.abs(each - found).max() for each in choices]))
    np.testing.assert_allclose(choices[at], found, atol=1e-6)
    neighbours = [at ^ (1 << bit) for bit in range(5)]
    assert least <= costs[neighbours].min() * (1 + 1e-5)
    assert costs.min() <= least


def test_the_rest_makes_up_by_the_ridge_of_the_paper(layer, spec, monkeypatch):
    """Two channels: one is rounded, and the other becomes w - (h22 + damping)^-1 h21 delta before it is rounded."""
    weight, h = layer(0, 2, 6)
    seen = []
    real = erq.flip

    def watching(array, *rest, **named):
        seen.append(array.copy())
        return real(array, *rest, **named)

    monkeypatch.setattr(erq, "flip", watching)
    curvature = Curvature(h)
    erq.solve(weight, spec("uint2", block=None), curvature)
    order = np.argsort(-curvature.energy)
    scaled = curvature.matrix[np.ix_(order, order)].astype(np.float64) + 0.01 * np.eye(2)
    first, second = weight[0][order]
    np.testing.assert_allclose(seen[0], first[None])
    chosen = spec("uint2", block=None)
    grid = clip.best_grid(weight, chosen, None, None, energy=curvature.energy + clip.FLOOR)
    delta = real(first[None], grid, np.zeros(1, np.intp), scaled[:1, :1].astype(np.float32))[1][0] - first
    np.testing.assert_allclose(seen[1][0], second - scaled[1, 0] / scaled[1, 1] * delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_lies_between_clipping_and_gptq(name, seed, layer, spec, cost):
    """What docs/methods.md says: GPTQ with its refinement is the stronger form."""
    weight, h = layer(seed, 96, 24)
    chosen, curvature = spec(name, block=32), Curvature(h)
    found, nearest, refined = (
        cost(weight, solve(weight, chosen, curvature), h)
        for solve in (erq.solve, lambda weight, chosen, _: rtn.solve(weight, chosen), gptq.solve)
    )
    assert found < 0.9 * nearest
    assert refined < 1.03 * found


def test_channels_without_energy_and_repeated_ones_do_no_harm(spec):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 8))
    x[:, 3], x[:, 5] = 0, x[:, 1]
    weight = rng.standard_normal((1, 8, 4)).astype(np.float32)
    found = erq.solve(weight, spec("uint4", block=None), Curvature(x.T @ x))
    assert np.isfinite(found.decode()).all()


def test_recipes_know_it():
    assert SOLVERS["erq"].hessian == "needs"
