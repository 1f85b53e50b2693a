"""Clip search, LLM-FP4's search, HQQ and codebooks: each finds what it looks for."""

import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.formats import NAMED_FORMATS
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import SOLVERS, clip, codebook, hqq, rtn


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_every_weight(name, layer, spec):
    weight, h = layer(0, 50, 6)
    solver = SOLVERS[name]
    for seen in (None, Curvature(h)):
        found = solver.solve(weight, spec("uint4"), seen, np)
        assert found.codes.shape == weight.shape
        assert found.sqnr_db > 10


def test_an_outlier_is_cut_off(spec):
    weight = np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)
    weight[0, 5, 2] = 9
    chosen = spec("fp4_e2m1", block=None)
    found, plain = clip.solve(weight, chosen), rtn.solve(weight, chosen)
    assert found.squared_error < 0.95 * plain.squared_error
    assert found.scale.max() < plain.scale.max()


def test_the_two_ends_of_a_range_move_by_themselves(spec):
    weight = np.random.default_rng(1).uniform(-1, 1, (1, 128, 1)).astype(np.float32)
    weight[0, 0, 0] = 1.6
    found = clip.solve(weight, spec("uint4", block=128))
    low, high = (float(each) for each in (found.decode().min(), found.decode().max()))
    assert -1.15 < low < -0.85
    assert 0.85 < high < 1.45


def test_an_error_where_inputs_are_strong_costs_more(layer, spec, cost):
    weight, h = layer(2, 64, 8)
    chosen = spec("int3")
    blind, seeing = clip.solve(weight, chosen), clip.solve(weight, chosen, Curvature(h))
    assert cost(weight, seeing, h) < cost(weight, blind, h)
    assert blind.squared_error < seeing.squared_error


def test_a_search_takes_the_format_that_fits_the_weights(spec):
    rng = np.random.default_rng(3)
    names = ("fp4_e2m1", "fp4_e1m2", "fp4_e3m0")
    uniform = rng.uniform(-1, 1, (1, 256, 4)).astype(np.float32)
    tailed = (np.sign(rng.standard_normal((1, 256, 4))) * np.exp(2 * rng.standard_normal((1, 256, 4)))).astype("f4")
    assert clip.solve(uniform, spec(*names, block=None), None, clip.OCTAVES).format.name == "fp4_e1m2"
    assert clip.solve(tailed, spec(*names, block=None), None, clip.OCTAVES).format.name == "fp4_e3m0"


def test_powers_of_two_as_scales_are_searched_too(layer, spec):
    weight, _ = layer(4, 64, 8)
    chosen = spec("fp4_e2m1", scale="e8m0", block=32)
    assert clip.solve(weight, chosen, None, clip.OCTAVES).squared_error <= rtn.solve(weight, chosen).squared_error


def norm(weight: np.ndarray, solution) -> float:
    return float((np.abs(solution.decode() - weight) ** 0.7).sum())


@pytest.mark.parametrize("block", [None, 16, 50])
def test_hqq_keeps_large_errors_few(block, spec):
    weight = np.random.default_rng(5).standard_t(4, (2, 64, 8)).astype(np.float32)
    chosen = spec("uint4", block=block)
    found, plain = hqq.solve(weight, chosen), rtn.solve(weight, chosen)
    assert norm(weight, found) <= norm(weight, plain)
    assert block is None or norm(weight, found) < 0.99 * norm(weight, plain)


def test_hqq_needs_zero_points(spec, layer):
    with pytest.raises(UsageError, match="symmetric: false"):
        hqq.solve(layer(6, 8, 2)[0], spec("fp4_e2m1"))


def test_a_codebook_finds_the_levels_that_are_there(spec):
    levels = np.array([-1, -0.7, -0.4, -0.2, 0, 0.2, 0.6, 1], np.float32)
    rng = np.random.default_rng(7)
    weight = 3 * rng.choice(levels, (1, 400, 3)).astype(np.float32)
    found = codebook.fit(weight, 3, None)
    assert np.allclose(found.levels, levels, atol=1e-6)
    exact = rtn.solve(weight, GridSpec([found], None, spec("int3").scale_type))
    assert exact.sqnr_db > 100


def test_a_codebook_leaves_less_error_than_a_fixed_one(layer, spec):
    weight, _ = layer(8, 128, 16)
    weight = (np.sign(weight) * np.abs(weight) ** 0.3).astype(np.float32)
    chosen = spec("nf4", block=32)
    own = GridSpec([codebook.fit(weight, 4, 32)], 32, chosen.scale_type)
    assert rtn.solve(weight, own).squared_error < 0.9 * rtn.solve(weight, chosen).squared_error


def test_levels_lie_where_inputs_are_strong(spec):
    rng = np.random.default_rng(9)
    weight = rng.uniform(-1, 1, (1, 200, 4)).astype(np.float32)
    weight[0, ::2] = rng.choice([-0.9, -0.3, 0.2, 0.25, 0.7], (100, 4))
    curvature = Curvature(np.diag(np.where(np.arange(200) % 2, 1e-4, 1)))
    found = rtn.solve(weight, GridSpec([codebook.fit(weight, 3, None, curvature)], None, spec("int3").scale_type))
    error = np.abs(found.decode() - weight)[0]
    assert error[::2].mean() < 0.035
    assert error[1::2].mean() > 0.05


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_codebook_of_zeros_is_a_format_still(bits):
    found = codebook.fit(np.zeros((1, 8, 2), np.float32), bits, None)
    assert found.bits == bits
    assert len(set(found.levels)) == 2**bits
    assert 0.0 in found.levels


def test_no_codebook_takes_the_name_of_a_format():
    assert codebook.fit(np.ones((1, 4, 1), np.float32), 4, None).name not in NAMED_FORMATS
