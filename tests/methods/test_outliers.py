"""A few weights beside the others: which they are, and that nothing is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import NonFiniteError
from onnxq.formats import get_format, get_scale_type
from onnxq.methods.grid import GridSpec, extremes
from onnxq.methods.outliers import count, take
from onnxq.methods.solution import Outliers
from onnxq.methods.solve import rtn

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9))


def spec(block: int | None, *, symmetric: bool = True) -> GridSpec:
    return GridSpec([get_format("int3")], block, get_scale_type("fp32"), symmetric)


def weight_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(2, shape).astype(np.float32)


@given(SHAPES, st.floats(0.001, 1), st.none() | st.integers(1, 50), st.booleans(), st.integers(0, 99))
def test_both_parts_add_up(shape, share, block, symmetric, seed):
    weight = weight_of(shape, seed)
    outliers, rest = take(weight, share, spec(block, symmetric=symmetric))
    assert len(outliers.positions) == len(set(outliers.positions.tolist())) == count(weight.size, share)
    assert (np.diff(outliers.positions) > 0).all()
    np.testing.assert_array_equal(outliers.dense(shape) + rest, weight)
    # What sixteen bits do not hold of an outlier is left to the others.
    assert (np.abs(rest.flat[outliers.positions]) <= np.abs(weight.flat[outliers.positions]) / 256).all()


@given(SHAPES, st.integers(0, 99))
def test_one_scale_in_all_loses_its_largest(shape, seed):
    weight = weight_of(shape, seed)
    outliers, rest = take(weight, 0.2, spec(None))
    taken = np.abs(weight.flat[outliers.positions])
    assert np.abs(rest).max(initial=0) <= max(taken.min(initial=np.inf), 0) or not taken.size


def test_taken_is_what_narrows_a_group_most():
    # Two columns: 8 stands alone; 9 and 8.9 narrow nothing alone, but 5.5 a piece together, less than 8 does.
    weight = np.zeros((1, 4, 2), np.float32)
    weight[0, :, 0], weight[0, :, 1] = (8, 1, -1, 0.5), (9, -8.9, 6, 5)
    assert take(weight, 1 / 8, spec(4))[0].positions.tolist() == [0]
    assert take(weight, 3 / 8, spec(4))[0].positions.tolist() == [0, 1, 3]


def test_zero_points_have_two_ends():
    # One long tail below: with a zero point it alone decides about one end, though 7 is almost as large.
    weight = np.array([7, 6.9, 6.8, -6, 0, 0.5, 1, -0.5], np.float32).reshape(1, 8, 1)
    assert take(weight, 1 / 8, spec(8, symmetric=False))[0].positions.tolist() == [3]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [None, 16, 64])
def test_more_of_them_leave_smaller_ranges_and_errors(block, symmetric):
    weight, how, errors = weight_of((1, 64, 32)), spec(block, symmetric=symmetric), []
    for share in (0.002, 0.01, 0.05):
        rest = take(weight, share, how)[1]
        low, high = extremes(rest, block)
        errors.append((float((high - low).sum()), rtn.solve(rest, how).squared_error))
    assert errors[0] > errors[1] > errors[2]


def test_turned_is_the_same_matrix_seen_otherwise():
    outliers, _ = take(weight_of((2, 9, 5)), 0.2, spec(3))
    turned = outliers.turned((2, 9, 5))
    np.testing.assert_array_equal(turned.dense((5, 9, 2)), outliers.dense((2, 9, 5)).transpose(2, 1, 0))
    assert (np.diff(turned.positions) > 0).all()
    assert isinstance(turned, Outliers)


def test_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match="1 NaN or Inf"):
        take(np.array([[[1.0], [np.inf]]], np.float32), 0.5, spec(2))
