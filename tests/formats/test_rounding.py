"""Every format rounds exactly as the oracle says."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import NonFiniteError
from onnxq.formats import NAMED_FORMATS, Minifloat

MINIFLOATS = [Minifloat(e, m) for e in range(1, 8) for m in range(8 - e)]
ALL_FORMATS = list(dict.fromkeys([*NAMED_FORMATS.values(), *MINIFLOATS]))

every_format = pytest.mark.parametrize("fmt", ALL_FORMATS, ids=lambda fmt: fmt.name)
named_format = pytest.mark.parametrize("fmt", NAMED_FORMATS.values(), ids=lambda fmt: fmt.name)


def finite_bits(bits):
    x = np.array(bits, np.uint32).view(np.float32)
    return x[np.isfinite(x)]


any_bit_pattern = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=30).map(finite_bits)


def within(limit):
    """Numbers a bit beyond the range of a format, where its codes are dense."""
    number = st.floats(-1.25 * limit, 1.25 * limit, width=32)
    return st.lists(number, min_size=1, max_size=30).map(lambda x: np.array(x, np.float32))


def test_there_are_28_minifloats_of_at_most_a_byte():
    assert len(MINIFLOATS) == 28


@every_format
def test_each_code_means_what_its_definition_says(fmt, oracle_of):
    oracle = oracle_of(fmt)
    assert fmt.values.dtype == np.float32
    assert fmt.values.shape == (2**fmt.bits,)
    for code, exact in enumerate(oracle.values):
        if exact is None:
            assert np.isnan(fmt.values[code])
        else:
            assert float(fmt.values[code]) == exact
    if oracle.has_signed_zero:
        assert np.signbit(fmt.values[2 ** (fmt.bits - 1)])
    assert not np.signbit(fmt.values[0]) or fmt.values[0] < 0


@every_format
def test_each_code_survives_decode_and_encode(fmt):
    codes = np.flatnonzero(np.isfinite(fmt.values)).astype(np.uint8)
    np.testing.assert_array_equal(fmt.encode(fmt.decode(codes)), codes)


@every_format
def test_values_and_midpoints_and_their_float32_neighbours(fmt, oracle_of):
    oracle = oracle_of(fmt)
    probes = oracle.probes()
    probes = np.concatenate([probes, -probes])
    expected = np.array([oracle.encode(x) for x in probes], np.uint8)
    np.testing.assert_array_equal(fmt.encode(probes), expected)
    np.testing.assert_array_equal(oracle.encode_many(probes), expected, err_msg="the two oracles differ")


@every_format
def test_values_beside_codes_are_the_decoded_codes(fmt, oracle_of):
    probes = oracle_of(fmt).probes()
    x = np.stack([probes, -probes]).T
    codes, values = fmt.quantize_finite(x)
    np.testing.assert_array_equal(codes, fmt.encode(x))
    expected = fmt.decode(codes)
    np.testing.assert_array_equal(values, expected)
    if oracle_of(fmt).has_signed_zero:
        np.testing.assert_array_equal(np.signbit(values), np.signbit(expected))


@named_format
def test_a_million_random_numbers(fmt, oracle_of):
    random = np.random.default_rng(6)
    spread = (random.standard_normal(700_000) * fmt.max_value / 3).astype(np.float32)
    patterns = finite_bits(random.integers(0, 2**32, 310_000, np.uint32))
    x = np.concatenate([spread, patterns])[:1_000_000]
    assert x.size == 1_000_000
    np.testing.assert_array_equal(fmt.encode(x), oracle_of(fmt).encode_many(x))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_random_numbers_in_random_minifloats(oracle_of, data):
    fmt = data.draw(st.sampled_from(MINIFLOATS))
    x = data.draw(st.one_of(any_bit_pattern, within(fmt.max_value)))
    assert fmt.encode(x).tolist() == [oracle_of(fmt).encode(each) for each in x]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_random_numbers_in_named_formats(oracle_of, data):
    fmt = data.draw(st.sampled_from(list(NAMED_FORMATS.values())))
    x = data.draw(st.one_of(any_bit_pattern, within(fmt.max_value)))
    assert fmt.encode(x).tolist() == [oracle_of(fmt).encode(each) for each in x]


@every_format
def test_max_value_is_reached_on_both_sides_of_zero(fmt, oracle_of):
    exact = [value for value in oracle_of(fmt).values if value is not None]
    assert fmt.max_value == (min(max(exact), -min(exact)) if min(exact) < 0 else max(exact))


@named_format
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (2, 3, 5)])
def test_codes_have_the_shape_of_the_numbers(fmt, shape):
    codes = fmt.encode(np.full(shape, fmt.max_value, np.float32))
    assert codes.shape == shape
    assert codes.dtype == np.uint8
    assert fmt.decode(codes).shape == shape
    assert (fmt.decode(codes) == fmt.max_value).all()


@named_format
def test_strided_and_read_only_input_is_encoded_and_left_alone(fmt, oracle_of):
    x = np.linspace(-2 * fmt.max_value, 2 * fmt.max_value, 77 * 66, dtype=np.float32).reshape(77, 66)
    before = x.copy()
    x.setflags(write=False)
    view = x.T[::-2, 1::3]
    np.testing.assert_array_equal(fmt.encode(view), oracle_of(fmt).encode_many(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(x, before)


@named_format
def test_half_precision_and_plain_lists_are_numbers_too(fmt):
    x = [0.0, 0.3, -1.0, 1.25, 5.0]
    assert fmt.encode(x).tolist() == fmt.encode(np.array(x, np.float32)).tolist()
    half = np.array(x, np.float16)
    assert fmt.encode(half).tolist() == fmt.encode(half.astype(np.float32)).tolist()


@named_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_by_place(fmt, bad):
    x = np.zeros((3, 4), np.float32)
    x[1, 2] = x[2, 0] = bad
    with pytest.raises(NonFiniteError, match=rf"2 NaN or Inf values .*first at \[1, 2\].*{fmt.name}"):
        fmt.encode(x)


@named_format
def test_a_float64_number_that_overflows_float32_is_refused(fmt):
    with pytest.raises(NonFiniteError, match=r"first at \[1\]"):
        fmt.encode(np.array([1.0, 1e300]))


@named_format
@pytest.mark.parametrize("pattern", [0x7F81, 0xFF81, 0x7FC0, 0xFF80])
def test_every_kind_of_nan_is_refused_without_a_warning(fmt, pattern):
    x = np.array([0, 0, pattern], np.uint16).view(ml_dtypes.bfloat16)
    with pytest.raises(NonFiniteError, match=r"first at \[2\]"):
        fmt.encode(x)
