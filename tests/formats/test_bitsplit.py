import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.formats.bitsplit import join_planes, split_planes


def byte_of(codes, shift, mask, width):
    """One byte of a plane, spelt out: the field of each code, the earlier code in the lower bits."""
    return sum((code >> shift & mask) << width * at for at, code in enumerate(codes))


def test_the_bytes_of_four_codes():
    low, high = split_planes(np.array([0b10_0001, 0b01_0010, 0b11_1111, 0b00_1000], np.uint8))
    assert low.tolist() == [0b0010_0001, 0b1000_1111]
    assert high.tolist() == [0b00_11_01_10]


@pytest.mark.parametrize("count", range(68))
def test_ragged_counts_are_laid_out_as_documented_and_come_back(count):
    codes = np.random.default_rng(count).integers(0, 64, count, np.uint8)
    low, high = split_planes(codes)
    listed = codes.tolist()
    assert low.tolist() == [byte_of(listed[at : at + 2], 0, 0x0F, 4) for at in range(0, count, 2)]
    assert high.tolist() == [byte_of(listed[at : at + 4], 4, 0x03, 2) for at in range(0, count, 4)]
    assert join_planes(low, high, count).tolist() == listed


def test_all_codes_and_all_neighbours_come_back():
    pairs = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).astype(np.uint8)
    low, high = split_planes(pairs)
    assert 8 * (low.size + high.size) == 6 * pairs.size
    np.testing.assert_array_equal(join_planes(low, high, pairs.size), pairs.reshape(-1))


@given(st.lists(st.integers(0, 63), max_size=300))
def test_join_undoes_split(codes):
    low, high = split_planes(np.array(codes, np.uint8))
    assert join_planes(low, high, len(codes)).tolist() == codes
