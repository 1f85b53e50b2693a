"""What is done once weights are rounded: each correction is the optimum that it claims to be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import UsageError
from onnxq.methods.correct import bias, low_rank, norm


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs X [n, K], a weight [K, C], and the weight coarsely rounded."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16)) + rng.standard_normal(16)
    weight = rng.standard_normal((16, 9))
    return x, weight, np.round(weight)


def test_a_bias_gives_the_mean_back(layer):
    x, weight, rounded = layer
    made = x @ rounded + bias.correction(x.mean(0), weight, rounded)
    assert np.abs((x @ weight - made).mean(0)).max() < 1e-5


def test_a_bias_gives_back_what_went_wrong_before(layer):
    x, weight, rounded = layer
    z = 0.9 * x + 0.1
    made = z @ rounded + bias.correction(x.mean(0), weight, rounded, z.mean(0))
    assert np.abs((x @ weight - made).mean(0)).max() < 1e-5


def test_norm_factors_are_the_least_squares(layer):
    x, weight, rounded = layer
    other = np.random.default_rng(1).standard_normal((16, 4))
    weights, made = [weight, other], [rounded, np.round(other)]
    # One equation an output: sum over k of x_k q_kc s_k.
    design = np.concatenate([np.einsum("nk,kc->nck", x, q).reshape(-1, 16) for q in made])
    target = np.concatenate([(x @ w).ravel() for w in weights])
    exact = np.linalg.lstsq(design, target, rcond=None)[0]
    found = norm.factors(x.T @ x, weights, made, damping=1e-9)
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    errors = [norm.error(x.T @ x, weights, made, scale) for scale in (None, found)]
    assert errors[1] < errors[0]
    assert np.isclose(errors[0], np.square(target - design @ np.ones(16)).sum())


@given(st.integers(0, 1000), st.floats(1e-6, 10))
@settings(max_examples=30, deadline=None)
def test_norm_factors_never_make_it_worse(seed, damping):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((30, 8)) * np.exp(rng.standard_normal(8)), rng.standard_normal((8, 5))
    h, rounded = x.T @ x, np.round(weight)
    found = norm.factors(h, [weight], [rounded], damping=damping)
    assert norm.error(h, [weight], [rounded], found) <= norm.error(h, [weight], [rounded]) * (1 + 1e-6)


def test_what_was_never_active_keeps_its_gamma(layer):
    _, weight, rounded = layer
    assert np.array_equal(norm.factors(np.zeros((16, 16)), [weight], [rounded]), np.ones(16))


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_no_other_low_rank_matrix_is_better(rank, layer):
    x, weight, rounded = layer
    left, right = low_rank.factors(weight - rounded, x.T @ x, rank, damping=0)
    found = np.square(x @ (weight - rounded - left @ right)).sum()
    # Eckart, Young and Mirsky: the singular values of X E that are left out.
    least = np.square(np.linalg.svd(x @ (weight - rounded), compute_uv=False)[rank:]).sum()
    assert left.shape == (16, rank)
    assert found <= least * (1 + 1e-5) + 1e-6


def test_without_inputs_it_is_the_truncated_svd(layer):
    _, weight, rounded = layer
    left, right = low_rank.factors(weight - rounded, None, 4)
    least = np.square(np.linalg.svd(weight - rounded, compute_uv=False)[4:]).sum()
    assert np.isclose(np.square(weight - rounded - left @ right).sum(), least, rtol=1e-5)


def test_a_compensation_has_a_rank():
    with pytest.raises(UsageError, match="rank 0"):
        low_rank.factors(np.eye(2), None, 0)
