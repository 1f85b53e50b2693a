from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.errors import UsageError
from onnxq.formats import SCALE_TYPES, get_scale_type

every_scale = pytest.mark.parametrize("scale", SCALE_TYPES.values(), ids=lambda scale: scale.name)
# Above this a scale times a code could overflow float32: see ScaleType.store.
CEILING = 2.0**126

positive = st.integers(1, 0x7F7FFFFF).map(lambda bits: np.array(bits, np.uint32).view(np.float32)[()])


@cache
def grid(scale):
    """Every storable scale of a type of one or two bytes, as exact float64, ascending."""
    width = np.dtype(f"u{scale.dtype.itemsize}")
    values = np.arange(2 ** (8 * width.itemsize), dtype=width).view(scale.dtype)
    with np.errstate(invalid="ignore"):  # signaling NaN are among the bit patterns
        values = values[np.isfinite(values)].astype(np.float64)
    lowest = max(ml_dtypes.finfo(scale.dtype).smallest_normal, np.finfo(np.float32).smallest_normal)
    return np.unique(values[(values >= float(lowest)) & (values <= CEILING)])


def around_powers_of_two():
    powers = np.ldexp(np.float32(1), np.arange(-126, 128)).astype(np.float32)
    return np.concatenate([powers, np.nextafter(powers, np.float32(0)), np.nextafter(powers, np.float32(np.inf))])


def assert_stored_well(scale, wanted, stored):
    assert stored.dtype == scale.dtype
    got = stored.astype(np.float64)
    assert np.isfinite(got).all()
    # Neither zero nor subnormal, in the stored type and in the float32 it is decoded to.
    assert (got >= float(ml_dtypes.finfo(scale.dtype).smallest_normal)).all()
    assert (got >= np.finfo(np.float32).smallest_normal).all()
    if scale.dtype == np.float32:
        np.testing.assert_array_equal(got, np.clip(wanted, np.finfo(np.float32).smallest_normal, CEILING))
        return
    values = grid(scale)
    inside = np.clip(wanted.astype(np.float64), values[0], values[-1])
    above = np.searchsorted(values, inside)
    below = np.where(values[above] == inside, above, above - 1)
    if scale.rounding == "floor":
        np.testing.assert_array_equal(got, values[below])
    else:
        nearest = np.minimum(inside - values[below], values[above] - inside)
        np.testing.assert_array_equal(np.abs(got - inside), nearest)


@every_scale
@given(st.lists(positive, min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_positive_scale_becomes_a_normal_number_next_to_it(scale, wanted):
    x = np.array(wanted, np.float32)
    assert_stored_well(scale, x, scale.store(x))


@every_scale
def test_scales_around_powers_of_two_and_the_extremes(scale):
    x = np.concatenate([around_powers_of_two()[:-1], np.float32([1e-45, 1e-40, 3.4028235e38])])
    x = x[np.isfinite(x)]
    assert_stored_well(scale, x, scale.store(x))


@every_scale
def test_random_scales_of_every_magnitude(scale):
    bits = np.random.default_rng(8).integers(1, 0x7F800000, 50_000, np.uint32)
    x = bits.view(np.float32)
    assert_stored_well(scale, x, scale.store(x))


@every_scale
def test_storable_scales_are_kept(scale):
    values = around_powers_of_two() if scale.dtype == np.float32 else grid(scale)
    values = values[(values >= scale.smallest) & (values <= min(scale.largest, CEILING))].astype(np.float32)
    assert values.size > 100
    np.testing.assert_array_equal(scale.store(values).astype(np.float32), values)


@every_scale
@pytest.mark.parametrize("nothing", [0.0, -0.0, -1.0])
def test_a_group_of_zeros_still_gets_a_scale(scale, nothing):
    assert float(scale.store(np.float32([nothing]))[0]) == scale.smallest


@every_scale
def test_shape_is_kept(scale):
    assert scale.store(np.ones((2, 0, 3), np.float32)).shape == (2, 0, 3)
    assert scale.store(np.ones((4, 5), np.float32).T[::2]).shape == (3, 4)


@given(positive)
def test_e8m0_is_the_power_of_two_at_or_below(wanted):
    stored = Fraction(float(get_scale_type("e8m0").store(np.array([wanted]))[0]))
    exact = Fraction(float(wanted))
    if Fraction(2) ** -126 <= exact < Fraction(2) ** 127:
        assert stored <= exact < 2 * stored
    else:
        assert stored == (Fraction(2) ** -126 if exact < 1 else Fraction(2) ** 126)


@every_scale
def test_the_onnx_type_is_the_stored_type(scale):
    onnx_type = TensorProto.DataType.Value(scale.onnx_type)
    assert helper.tensor_dtype_to_np_dtype(onnx_type) == scale.dtype


@every_scale
def test_a_scale_type_is_found_by_its_name(scale):
    assert get_scale_type(scale.name) is scale


def test_only_e4m3_needs_a_second_level():
    assert [name for name, scale in SCALE_TYPES.items() if scale.two_level] == ["e4m3"]


def test_a_misspelt_scale_type_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="no scale type 'e8m'; did you mean 'e8m0'"):
        get_scale_type("e8m")
