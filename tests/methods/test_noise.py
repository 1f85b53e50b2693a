import numpy as np
import pytest

from onnxq.methods.noise import KINDS, noise


def powers(kind, sqnr_db, array):
    made = noise(array, kind, sqnr_db, np.random.default_rng(1))
    return made, 10 * np.log10(np.square(array).mean() / np.square(made).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sqnr_db", [-3.0, 20.0, 60.0])
def test_noise_has_the_power_that_is_asked_for(kind, sqnr_db):
    array = np.random.default_rng(0).standard_t(3, (64, 32)).astype(np.float32)
    made, ratio = powers(kind, sqnr_db, array)
    assert (made.shape, made.dtype) == (array.shape, np.float32)
    assert ratio == pytest.approx(sqnr_db, abs=1e-3)


def test_noise_follows_the_magnitudes_where_it_is_asked_to():
    array = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    large = np.abs(array) > np.median(np.abs(array))
    shares = {kind: np.square(powers(kind, 20.0, array)[0])[large].mean() for kind in KINDS}
    assert shares["proportional"] > 1.5 * shares["gaussian"] > 4 * shares["inverse"]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    assert not noise(np.zeros((3, 4), np.float32), kind, 20.0, np.random.default_rng(0)).any()
    assert noise(np.zeros((0, 4), np.float32), kind, 20.0, np.random.default_rng(0)).shape == (0, 4)
