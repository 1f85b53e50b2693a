import numpy as np
import pytest

from onnxq.formats import get_format
from onnxq.methods.channels import Range, channel_grid, smoothing


def seen(x):
    """[tokens, heads, size] -> what calibration saw."""
    low, high = x.min(0), x.max(0)
    place = np.minimum((x - low) / np.where(high > low, high - low, 1) * 128, 127).astype(int)
    counts = (place[..., None] == np.arange(128)).sum(0)
    return Range(low, high, counts.astype(np.float64))


def error(x, offset, scale, kind):
    values = kind.quantize_finite(((x - offset) / scale).astype(np.float32))[1]
    return ((values * scale + offset - x) ** 2).mean()


@pytest.fixture
def keys():
    """Channels of different sizes that lie off zero, as rotated keys do."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((4096, 2, 8)) * np.exp(rng.standard_normal(8)) + 3 * rng.standard_normal((2, 8))


@pytest.mark.parametrize("name", ["int2", "int3", "int4"])
def test_an_offset_and_a_clipped_range_beat_the_symmetric_whole_range(name, keys):
    kind = get_format(name)
    plain = np.abs(keys).max(0) / kind.high
    assert error(keys, *channel_grid(seen(keys), kind), kind) < 0.7 * error(keys, np.zeros_like(plain), plain, kind)


def test_uniform_channels_use_every_integer():
    x = np.random.default_rng(0).uniform(-1, 3, (4096, 1, 1))
    offset, scale = channel_grid(seen(x), get_format("int4"))
    codes = np.rint((x - offset) / scale)
    assert (codes.min(), codes.max()) == (-8, 7)
    # Sixteen equal cells, each with its number in the middle.
    assert scale.item() == pytest.approx(4 / 16, rel=2e-2)
    assert error(x, offset, scale, get_format("int4")) == pytest.approx(0.25**2 / 12, rel=2e-2)


@pytest.mark.parametrize(("name", "top"), [("fp8_e4m3", 448), ("int8", 127.5)])
def test_with_many_bits_there_is_room_beyond_the_range(name, top, keys):
    offset, scale = channel_grid(seen(keys), get_format(name))
    np.testing.assert_allclose(np.abs(keys - offset).max(0) / scale, top / 1.25, atol=0.51)


def test_without_an_offset_the_scale_reaches_both_ways(keys):
    offset, scale = channel_grid(seen(keys), get_format("int8"), centred=False)
    assert not offset.any()
    np.testing.assert_allclose(scale * 127, 1.25 * np.abs(keys).max(0))


def test_smoothing_brings_channels_closer(keys):
    offset, factor = smoothing(seen(keys))
    sizes, smoothed = (np.abs((keys - offset) / each).max(0) for each in (1, factor))
    assert smoothed.max() / smoothed.min() == pytest.approx((sizes.max() / sizes.min()) ** 0.5, rel=0.2)


@pytest.mark.parametrize(("name", "centred"), [("int4", True), ("int4", False), ("fp4_e2m1", True), ("fp6_e2m3", True)])
def test_no_range_around_the_middle_leaves_less_error_than_the_fit(name, centred, keys):
    """Some of the numbers lie far out, on one side: what is clipped, and how much, differs between the sides."""
    keys[::50] += 4
    kind, whole = get_format(name), Range(keys.min(0), keys.max(0))
    fitted = error(keys, *channel_grid(seen(keys), kind, centred=centred), kind)
    offset, scale = channel_grid(whole, kind, centred=centred)
    assert fitted < 1.01 * min(error(keys, offset, scale * factor, kind) for factor in np.linspace(0.1, 1, 50))


def test_a_channel_that_never_moved_has_a_finite_scale():
    still = np.zeros((4, 1, 2))
    still[:, 0, 1] = (1, 2, 3, 4)
    kind = get_format("int4")
    for offset, scale in (
        channel_grid(seen(still), kind),
        channel_grid(seen(still), kind, centred=False),
        smoothing(seen(still)),
    ):
        assert np.isfinite(offset).all()
        assert (scale > 0).all()
