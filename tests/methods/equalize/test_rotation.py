import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.methods.equalize.rotation import padded_size, rotation

SIZES = [2, 6, 12, 48, 96, 100, 256, 704, 92, 11008]


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_rotated_back_is_what_it_was(size, keep_mean):
    turn = rotation(size, seed=3, keep_mean=keep_mean)
    rows = np.random.default_rng(0).normal(size=(5, size))
    assert turn.size == size
    turned = turn.apply(rows)
    np.testing.assert_allclose(turn.inverse.apply(turned), rows, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_a_mean_that_is_kept_is_kept(size):
    rows = np.random.default_rng(0).normal(1, size=(5, size))
    np.testing.assert_allclose(rotation(size, 1, keep_mean=True).apply(rows).mean(1), rows.mean(1), atol=1e-12)


@pytest.mark.parametrize("size", [7, 1, 35])
def test_an_odd_number_of_channels_has_no_rotation(size):
    assert rotation(size, 0) is None


@given(st.integers(1, 60), st.integers(0, 5), st.booleans())
def test_apply_is_the_product_with_the_matrix(half, seed, keep_mean):
    turn = rotation(2 * half, seed, keep_mean=keep_mean)
    array = np.random.default_rng(seed).normal(size=(3, 2 * half, 4))
    np.testing.assert_allclose(turn.apply(array, axis=1), np.einsum("abc,bd->adc", array, turn.matrix()), atol=1e-12)


@pytest.mark.parametrize("keep_mean", [False, True])
@pytest.mark.parametrize("size", [96, 256, 704, 4096])
def test_an_outlier_is_spread_over_all_channels(size, keep_mean):
    outlier = np.zeros((1, size))
    outlier[0, size // 3] = 100.0
    largest = np.abs(rotation(size, 0, keep_mean=keep_mean).apply(outlier)).max()
    assert largest <= 100 / size**0.5 * (4 if keep_mean else 1 + 1e-9)


def test_seeds_give_different_rotations_and_always_the_same():
    first, again, other = rotation(64, 0), rotation(64, 0), rotation(64, 1)
    np.testing.assert_array_equal(first.matrix(), again.matrix())
    assert not np.array_equal(first.matrix(), other.matrix())


def test_heads_are_rotated_each_for_itself():
    head = rotation(12, 0)
    rows = np.random.default_rng(0).normal(size=(2, 36))
    expected = np.concatenate([head.apply(each) for each in np.split(rows, 3, axis=1)], axis=1)
    np.testing.assert_allclose(head.repeated(3).apply(rows), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "expected"), [(704, 704), (705, 720), (45, 48), (1366, 1376), (12, 12), (7, 7), (96, 96)]
)
def test_channels_are_added_where_there_is_no_good_rotation(size, expected):
    assert padded_size(size) == expected


def test_short_rows_are_filled_up_with_zeros():
    rows = np.random.default_rng(0).normal(size=(3, 45))
    turn = rotation(48, 0)
    np.testing.assert_array_equal(turn.apply(rows), turn.apply(np.pad(rows, [(0, 0), (0, 3)])))
    np.testing.assert_allclose(turn.inverse.apply(turn.apply(rows))[:, :45], rows, atol=1e-13)
