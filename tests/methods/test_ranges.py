"""Ranges of activations: what each way to choose one is meant to be best at."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.formats import NAMED_FORMATS, Integer, get_format
from onnxq.methods.ranges import find_range, round_to, scale_of

ROUNDABLE = [name for name in NAMED_FORMATS if name != "nf4"]


def histogram(x: np.ndarray, bins: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    counts, edges = np.histogram(x, bins, (x.min(), x.max()))
    return counts.astype(np.float64), edges


def error(x: np.ndarray, found: tuple[float, float], name: str, *, symmetric: bool) -> float:
    kind = get_format(name)
    scale, zero = scale_of(np.asarray(found[0]), np.asarray(found[1]), kind, symmetric=symmetric)
    return float(((x - round_to(x, scale, zero, kind)) ** 2).mean())


@given(
    low=st.floats(-1e6, 1e6),
    high=st.floats(-1e6, 1e6),
    name=st.sampled_from(ROUNDABLE),
    symmetric=st.booleans(),
)
def test_a_range_is_covered_and_zero_stays_zero(low: float, high: float, name: str, symmetric: bool) -> None:
    kind = get_format(name)
    low, high = min(low, high), max(low, high)
    symmetric = symmetric or not isinstance(kind, Integer)
    scale, zero = scale_of(np.asarray(low), np.asarray(high), kind, symmetric=symmetric)
    assert scale > 0
    ends = np.array([0.0, min(low, 0), max(high, 0)])
    rounded = round_to(ends, scale, zero, kind)
    assert rounded[0] == 0
    if not (symmetric and name.startswith("uint")):
        # Half a step for rounding, half a step for the zero point; the values of a float lie wider apart at its end.
        step = np.diff(np.unique(kind.values[np.isfinite(kind.values)]))[-1]
        assert np.abs(rounded - ends).max() <= step * scale * 1.0001


def test_a_whole_range_is_the_range_of_the_data_and_zero() -> None:
    counts, edges = histogram(np.array([0.5, 2.0]))
    assert find_range("absmax", counts, edges, get_format("int8"), symmetric=True) == (0.0, 2.0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_percentile_leaves_out_so_many(symmetric: bool) -> None:
    x = np.random.default_rng(0).standard_normal(100_000)
    low, high = find_range("percentile", *histogram(x), get_format("int8"), symmetric=symmetric, percentile=99.0)
    outside = float(((x < low) | (x > high)).mean())
    assert outside == pytest.approx(0.01, abs=0.001)
    assert symmetric == (low == -high)


# An E3M2 float reaches so far down that cutting the range gains little.
@pytest.mark.parametrize(("name", "share"), [("int4", 0.5), ("fp4_e2m1", 0.5), ("int8", 0.9), ("fp6_e3m2", 1.0)])
def test_the_smallest_error_is_smaller_than_that_of_any_percentile(name: str, share: float) -> None:
    x = np.random.default_rng(0).standard_t(4, 50_000)
    kind, (counts, edges) = get_format(name), histogram(x)
    best = error(x, find_range("mse", counts, edges, kind, symmetric=True), name, symmetric=True)
    for percentile in (99.0, 99.9, 99.99, 100.0):
        other = find_range("percentile", counts, edges, kind, symmetric=True, percentile=percentile)
        assert best <= 1.02 * error(x, other, name, symmetric=True)
    assert best < share * error(x, (x.min(), x.max()), name, symmetric=True)


def test_entropy_cuts_off_what_hardly_ever_occurs() -> None:
    x = np.concatenate([np.random.default_rng(0).standard_normal(100_000), [300.0, -300.0]])
    low, high = find_range("entropy", *histogram(x), get_format("int8"), symmetric=True)
    assert -60 < low < -2
    assert 2 < high < 60


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_nothing_to_choose_from(method) -> None:
    counts, edges = np.array([5.0, 0.0]), np.array([0.0, 0.0, 0.0])
    assert find_range(method, counts, edges, get_format("int8"), symmetric=True) == (0.0, 0.0)
    scale, zero = scale_of(np.zeros(3), np.zeros(3), get_format("uint8"), symmetric=False)
    assert (scale == 1).all()
    assert (zero == 0).all()
