import ml_dtypes
import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.formats import Minifloat, get_format

ML_DTYPES = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
}
in_ml_dtypes = pytest.mark.parametrize("name", ML_DTYPES)


@in_ml_dtypes
def test_ml_dtypes_reads_the_same_values(name):
    fmt, dtype = get_format(name), ML_DTYPES[name]
    theirs = np.arange(2**fmt.bits, dtype=np.uint8).view(dtype).astype(np.float32)
    theirs[~np.isfinite(theirs)] = np.nan
    np.testing.assert_array_equal(fmt.values, theirs)
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.signbit(fmt.values[finite]), np.signbit(theirs[finite]))


@in_ml_dtypes
def test_ml_dtypes_writes_the_same_codes(name, oracle_of):
    fmt, dtype = get_format(name), ML_DTYPES[name]
    probes = oracle_of(fmt).probes()
    random = np.random.default_rng(4).standard_normal(300_000).astype(np.float32) * np.float32(fmt.max_value / 2)
    x = np.concatenate([probes, -probes, random])
    # ml_dtypes turns what lies beyond the FP8 types into NaN or Inf; here it saturates.
    theirs = np.clip(x, -fmt.max_value, fmt.max_value).astype(dtype).view(np.uint8)
    np.testing.assert_array_equal(fmt.encode(x), theirs)


@pytest.mark.parametrize(
    ("name", "largest", "smallest", "onnx_type"),
    [  # OCP Microscaling Formats (MX) v1.0, tables 2 to 5; OCP 8-bit Floating Point (OFP8) v1.0, table 1
        ("fp4_e2m1", 6.0, 0.5, "FLOAT4E2M1"),
        ("fp6_e2m3", 7.5, 0.125, "FLOAT6E2M3"),
        ("fp6_e3m2", 28.0, 0.0625, "FLOAT6E3M2"),
        ("fp8_e4m3", 448.0, 2.0**-9, "FLOAT8E4M3FN"),
        ("fp8_e5m2", 57344.0, 2.0**-16, "FLOAT8E5M2"),
    ],
)
def test_the_published_extremes(name, largest, smallest, onnx_type):
    fmt = get_format(name)
    assert fmt.max_value == largest
    assert fmt.values[1] == smallest
    assert fmt.onnx_type == onnx_type


def test_one_exponent_bit_is_a_uniform_grid():
    assert get_format("fp4_e1m2").values[:8].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]


def test_without_mantissa_bits_values_are_powers_of_two():
    assert get_format("fp4_e3m0").values[:8].tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]


def test_a_tie_between_powers_of_two_goes_to_the_even_code():
    fmt = get_format("fp4_e3m0")
    assert fmt.decode(fmt.encode([0.125, 0.375, 0.75, 1.5, 3.0, 6.0, 12.0])).tolist() == [0, 0.5, 0.5, 2, 2, 8, 8]


def test_zero_and_what_rounds_to_it_keep_their_sign():
    fmt = get_format("fp6_e3m2")
    assert fmt.encode([0.0, -0.0, 1e-45, -1e-45, 0.03125, -0.03125]).tolist() == [0, 32, 0, 32, 0, 32]


@pytest.mark.parametrize(("e", "m"), [(0, 3), (-1, 2), (2, -1), (4, 4), (8, 0)])
def test_what_does_not_fit_in_a_byte_is_refused(e, m):
    with pytest.raises(UsageError, match=rf"E{e}M{m} .*e \+ m <= 7"):
        Minifloat(e, m)
