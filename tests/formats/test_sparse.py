import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.formats.sparse import half_of, most_entries, pack_sparse, unpack_sparse


@given(st.sets(st.integers(0, 400_000), max_size=12), st.integers(0, 3))
def test_numbers_come_back_to_their_places(places, behind):
    positions = np.array(sorted(places), np.int64)
    size = 400_001 + behind
    values = np.arange(1, len(places) + 1).astype(np.float16)
    gaps, stored = pack_sparse(positions, values)
    assert (gaps.dtype, stored.dtype) == (np.uint16, np.float16)
    assert len(gaps) == len(stored) <= most_entries(len(places), size)
    dense = np.zeros(size, np.float32)
    dense[positions] = values
    np.testing.assert_array_equal(unpack_sparse(gaps, stored, size), dense)


def test_far_numbers_have_zeros_between_them():
    gaps, values = pack_sparse(np.array([0, 65535, 65535 + 65536]), np.array([1, 2, 3], np.float16))
    assert gaps.tolist() == [0, 65535, 65535, 1]
    assert values.tolist() == [1, 2, 0, 3]


def test_nothing_takes_nothing():
    gaps, values = pack_sparse(np.zeros(0, np.int64), np.zeros(0, np.float16))
    assert gaps.size == values.size == 0
    assert not unpack_sparse(gaps, values, 7).any()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 1.5, -65504], np.float16),
        ([1e5], ml_dtypes.bfloat16),
        ([1.0, 1e-6], ml_dtypes.bfloat16),
        ([], np.float16),
    ],
)
def test_what_leaves_float16_is_bfloat16(values, dtype):
    assert half_of(values).dtype == dtype
