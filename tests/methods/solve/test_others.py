"""Clip search, LLM-FP4's search and HQQ: each finds what it looks for."""

from dataclasses import replace

import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.methods.curvature import Curvature
from onnxq.methods.solve import SOLVERS, clip, hqq, rtn

OWN_FORMATS = {"pb-llm": ["binary"], "kmeans": ["codebook4"]}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_takes_every_weight(name, layer, spec):
    weight, h = layer(0, 50, 6)
    solver, chosen = SOLVERS[name], spec(*OWN_FORMATS.get(name, ["uint4"]))
    for seen in (None, Curvature(h)):
        found = solver.solve(weight, replace(chosen, salient=0.5), seen, np)
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
