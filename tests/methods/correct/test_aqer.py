"""Aqer is the minimum of its own objective, and makes up for noise on the inputs of a layer."""

import numpy as np
import pytest

from onnxq.methods.correct import aqer


@pytest.fixture
def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Inputs X of a float layer, and Z, which it sees behind quantized ones."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12))
    return x, np.round(x * 2) / 2 + 0.3 * x[:, ::-1]


def test_it_is_where_the_gradient_of_the_ridge_is_zero(inputs):
    x, z = inputs
    weight = np.random.default_rng(1).standard_normal((12, 5))
    made = weight + aqer.correction(z.T @ z, z.T @ x, damping=0.05) @ weight
    ridge = 0.05 * np.trace(z.T @ z) / 12
    gradient = z.T @ (z @ made - x @ weight) + ridge * (made - weight)
    assert np.abs(gradient).max() < 1e-4 * np.abs(z.T @ z).max()


def test_it_takes_back_what_the_inputs_tell(inputs):
    x, z = inputs
    weight = np.random.default_rng(2).standard_normal((12, 5))
    correction = aqer.correction(z.T @ z, z.T @ x)
    errors = [np.square(z @ (weight + share * correction @ weight) - x @ weight).sum() for share in (0, 0.5, 1)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * errors[0]


def test_inputs_without_errors_need_none(inputs):
    x, _ = inputs
    assert not aqer.correction(x.T @ x, x.T @ x).any()


def test_inputs_that_were_never_active_tell_nothing():
    assert not aqer.correction(np.zeros((4, 4)), np.zeros((4, 4))).any()
