"""What the formulas promise about the scales they give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.methods.curvature import Curvature
from onnxq.methods.equalize import aweq, awq, disassemble, shift, smooth
from onnxq.methods.equalize.ties import tied

SIZES = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20).map(np.array)


def rows(seed: int, count: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, width)) * np.exp(rng.uniform(-3, 3, width))).astype(np.float32)


@given(SIZES)
def test_smooth_moves_all_or_nothing_of_the_range(absmax):
    ones = np.ones(len(absmax))
    assert np.allclose(absmax / smooth.scales(absmax, ones, 1.0), 1)
    assert np.allclose(smooth.scales(ones, absmax, 0.0) * absmax, 1)
    half = smooth.scales(absmax, ones, 0.5)
    assert np.allclose(absmax / half, half)


def test_smooth_leaves_silent_channels_alone():
    assert smooth.scales(np.array([0.0, 4.0, 4.0]), np.array([1.0, 0.0, 1.0]), 0.5).tolist() == [1.0, 1.0, 2.0]


def test_smooth_expects_less_error_where_outliers_are_shared():
    x, weight = rows(0, 200, 16), np.ones((16, 8), np.float32)
    absmax, energy = np.abs(x).max(0), np.square(x).mean(0)
    errors = [
        smooth.expected_error(smooth.scales(absmax, np.ones(16), alpha), absmax, energy, [weight], 127)
        for alpha in (0.0, 0.5)
    ]
    assert errors[1] < errors[0] / 2


def test_smooth_expects_about_the_error_that_rounding_makes():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((4000, 32)), rng.standard_normal((32, 16)).astype(np.float32)
    absmax, energy = np.abs(x).max(0), np.square(x).mean(0)
    steps = absmax.max() / 127, np.abs(weight).max(0) / 127
    made = np.rint(x / steps[0]) * steps[0] @ (np.rint(weight / steps[1]) * steps[1])
    found = np.square(made - x @ weight).sum(1).mean()
    assert smooth.expected_error(np.ones(32), absmax, energy, [weight], 127) == pytest.approx(found, rel=0.2)


@given(SIZES)
def test_aweq_makes_ranges_equal(width):
    weight_width = width[::-1].copy()
    scale = aweq.scales(width, weight_width)
    assert np.allclose(width / scale, weight_width * scale, rtol=1e-6)


def test_aweq_leaves_silent_channels_alone():
    assert aweq.scales(np.array([0.0, 9.0]), np.array([1.0, 1.0])).tolist() == [1.0, 3.0]


@given(SIZES, st.integers(1, 4))
def test_shift_raises_small_channels_by_octaves_as_far_as_the_format_has_them(absmax, exponent_bits):
    scale = shift.scales(absmax, exponent_bits)
    octaves, raised = -np.log2(scale), absmax / scale
    assert np.array_equal(octaves, np.rint(octaves))
    assert octaves.min() == 0
    assert octaves.max() <= 2**exponent_bits - 1
    assert raised.max() == absmax.max()
    # Half of the largest is reached by all that had octaves enough.
    assert ((raised > absmax.max() / 2) | (octaves == 2**exponent_bits - 1)).all()


def test_shift_leaves_silence_alone():
    assert shift.scales(np.array([0.0, 8.0, 1.0]), 2).tolist() == [1, 1, 0.125]
    assert shift.scales(np.zeros(3), 2).tolist() == [1, 1, 1]


@given(st.integers(0, 1000), st.integers(2, 4))
def test_awq_is_never_worse_than_rounding(seed, bits):
    x, rng = rows(seed, 64, 8), np.random.default_rng(seed)
    weights = [rng.standard_normal((8, 6)).astype(np.float32) for _ in range(2)]
    curvature = Curvature(x.T @ x)

    def rounded(weight: np.ndarray) -> np.ndarray:
        step = np.abs(weight).max(0) / (2 ** (bits - 1) - 1)
        return np.rint(weight / step) * step

    def error(scale: np.ndarray) -> float:
        column = scale.astype(np.float32)[:, None]
        return sum(curvature.error(rounded(each * column) / column - each) for each in weights)

    scale, exponent = awq.scales(np.abs(x).mean(0), curvature, weights, [rounded, rounded], np.arange(8))
    assert error(scale) <= error(np.ones(8)) * (1 + 1e-5)
    assert (exponent == 0) == np.allclose(scale, 1)


def test_awq_protects_the_loud_channel():
    x = np.ones((10, 4), np.float32) * np.array([100, 1, 1, 1], np.float32)
    weight = np.array([[0.3, 0.2], [1, -1], [0.9, 0.8], [-0.7, 0.9]], np.float32)
    scale, exponent = awq.scales(
        np.abs(x).mean(0), Curvature(x.T @ x), [weight], [lambda each: np.rint(each * 2) / 2], np.arange(4)
    )
    assert exponent > 0
    assert scale.argmax() == 0


def test_tied_channels_take_the_largest():
    assert tied(np.array([1.0, 5.0, 3.0, 2.0]), np.array([0, 1, 0, 1])).tolist() == [3, 5, 3, 5]


@given(SIZES, st.floats(0.01, 1.0))
def test_disassembly_keeps_to_its_ratio(absmax, ratio):
    ones = np.ones(len(absmax))
    count = disassemble.copies(absmax, absmax**2 / 3, ones, ratio, 7, np.arange(len(absmax)))
    assert (count >= 1).all()
    assert (count - 1).sum() <= ratio * len(absmax)


def test_disassembly_splits_the_outlier():
    absmax = np.array([1.0] * 39 + [2.5])
    count = disassemble.copies(absmax, absmax**2 / 3, np.ones(40), 0.05, 7, np.arange(40))
    assert count.tolist() == [1] * 39 + [3]


def test_disassembly_leaves_even_channels_alone():
    assert disassemble.copies(np.ones(40), np.ones(40) / 3, np.ones(40), 1.0, 7, np.arange(40)).tolist() == [1] * 40
    assert disassemble.copies(np.zeros(3), np.zeros(3), np.ones(3), 1.0, 7, np.arange(3)).tolist() == [1, 1, 1]


def test_assembly_finds_channels_that_are_alike():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((100, 6)), rng.standard_normal((6, 3))
    x[:, 3], weight[5] = x[:, 0], weight[2]
    found = disassemble.pairs(x.T @ x, [weight], np.ones(6, bool), 2)
    assert sorted(map(tuple, found.tolist())) == [(0, 3), (2, 5)]
    merged = x @ weight
    for one, other in found:
        mean = (x[:, one] + x[:, other]) / 2
        merged += np.outer(mean - x[:, one], weight[one]) + np.outer(mean - x[:, other], weight[other])
    assert np.allclose(merged, x @ weight)


def test_assembly_takes_only_free_channels_once():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((100, 9)), rng.standard_normal((9, 3))
    free = np.arange(9) != 4
    found = disassemble.pairs(x.T @ x, [weight], free, 9)
    assert len(found) == 4
    assert len(np.unique(found)) == 8
    assert 4 not in found
    assert disassemble.pairs(x.T @ x, [weight], free, 0).shape == (0, 2)
