import numpy as np
import pytest

from onnxq.formats import NAMED_FORMATS, SCALE_TYPES, get_format
from onnxq.methods.grid import GridSpec
from onnxq.methods.histogram import BINS, histogram, span
from onnxq.methods.solve import rtn


def bins(units: np.ndarray, low: float, high: float) -> list[int]:
    """Counted one by one."""
    counts = [0] * BINS
    for unit in units.reshape(-1).tolist():
        counts[min(BINS - 1, max(0, int((unit - low) / (high - low) * BINS)))] += 1
    return counts


@pytest.mark.parametrize("block", [None, 4, 12])
@pytest.mark.parametrize("kind", ["fp4_e2m1", "fp6_e3m2", "int8", "nf4"])
def test_values_are_counted_in_units_of_their_scales(kind, block):
    weight = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)
    solution = rtn.solve(weight, GridSpec([get_format(kind)], block, SCALE_TYPES["fp32"]))
    groups = np.zeros(12, int) if block is None else np.arange(12) // block
    units = weight / solution.scale[:, groups]
    assert list(histogram(weight, solution)) == bins(units, *span(solution.format))


def test_zero_points_and_scales_of_scales_are_taken_into_account():
    weight = np.random.default_rng(1).uniform(1, 3, size=(1, 32, 8)).astype(np.float32)
    asymmetric = rtn.solve(weight, GridSpec([get_format("uint4")], 32, SCALE_TYPES["fp32"], symmetric=False))
    # All weights are positive, and zero stays a value of the grid: the lowest codes stay free.
    assert sum(histogram(weight, asymmetric)[: BINS // 4]) == 0
    assert histogram(weight, asymmetric)[-1] > 0
    two_level = rtn.solve(weight, GridSpec([get_format("fp4_e2m1")], 16, SCALE_TYPES["e4m3"]))
    assert two_level.tensor_scale is not None
    assert histogram(weight, two_level)[-1] > 0
    assert sum(histogram(weight, two_level)) == weight.size


@pytest.mark.parametrize("shape", [(1, 1024, 256), (4096, 64, 1), (300, 100, 7), (2, 3, 200_000)])
@pytest.mark.parametrize("kind", ["fp6_e2m3", "uint4"])
def test_of_a_large_weight_a_part_is_counted_and_the_outline_stays(kind, shape):
    rng = np.random.default_rng(2)
    weight = rng.normal(size=shape).astype(np.float32)
    solution = rtn.solve(weight, GridSpec([get_format(kind)], None, SCALE_TYPES["fp32"], not kind.startswith("uint")))
    counts = np.array(histogram(weight, solution))
    assert 1 << 14 <= counts.sum() < weight.size
    units = weight / solution.scale
    if solution.zero_point is not None:
        units += solution.format.decode(solution.zero_point)
    every = np.histogram(units, BINS, span(solution.format))[0]
    assert np.abs(counts / counts.sum() - every / every.sum()).max() < 0.02


@pytest.mark.parametrize("kind", NAMED_FORMATS)
def test_every_format_has_an_outline(kind):
    weight = np.random.default_rng(3).normal(size=(1, 32, 8)).astype(np.float32)
    symmetric = not kind.startswith("uint")
    solution = rtn.solve(weight, GridSpec([get_format(kind)], 16, SCALE_TYPES["fp32"], symmetric))
    assert sum(histogram(weight, solution)) == weight.size


def test_what_is_not_finite_is_counted_somewhere():
    weight = np.array([[[1.0], [2.0], [np.inf], [np.nan]]], np.float32)
    solution = rtn.solve(np.nan_to_num(weight, posinf=2), GridSpec([get_format("int8")], 4, SCALE_TYPES["fp32"]))
    assert sum(histogram(weight, solution)) == 4
