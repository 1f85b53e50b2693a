"""The table by which a GPU rounds gives the codes of each format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.formats import get_format
from onnxq.methods.nearest import Table, quantize_finite

FORMATS = ["fp6_e2m3", "fp6_e3m2", "fp4_e3m0", "fp8_e4m3", "int3", "uint4", "int8", "nf4", "codebook3", "codebook4"]


def numbers(kind):
    """All values, what is half-way between two, and what lies beyond."""
    levels = np.unique(kind.values[np.isfinite(kind.values)])
    half = ((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32)
    ends = np.float32([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])
    return np.concatenate(
        [levels, half, np.nextafter(half, -np.inf), np.nextafter(half, np.inf), ends], dtype=np.float32
    )


@pytest.mark.parametrize("name", FORMATS)
def test_ties_and_zeros_go_where_the_format_sends_them(name):
    kind = get_format(name)
    x = numbers(kind)
    codes, values = kind.quantize_finite(x)
    found = Table.of(kind).look_up(x)
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], values)


@given(st.sampled_from(FORMATS), st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_any_number_goes_where_the_format_sends_it(name, x):
    kind, x = get_format(name), np.float32(x)
    assert np.array_equal(Table.of(kind).look_up(x)[0], kind.quantize_finite(x)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
def test_a_gpu_rounds_as_the_format_does(name):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("CUDA finds no GPU")
    kind = get_format(name)
    x = numbers(kind)
    for mine, exact in zip(quantize_finite(kind, cupy.asarray(x[:, None])), kind.quantize_finite(x), strict=True):
        assert np.array_equal(mine.get()[:, 0], exact)
