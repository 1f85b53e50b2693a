import numpy as np
import pytest

from onnxq.runtime.sampling import next_token

PROBABILITIES = np.array([0.1, 0.4, 0.2, 0.3])
LOGITS = np.log(PROBABILITIES)


def drawn(n=4000, **settings):
    rng = np.random.default_rng(0)
    return np.bincount([next_token(LOGITS, rng, **settings) for _ in range(n)], minlength=4) / n


def test_temperature_zero_takes_the_likeliest():
    assert next_token(LOGITS, np.random.default_rng(0)) == 1


def test_temperature_one_draws_by_probability():
    assert drawn(temperature=1.0) == pytest.approx(PROBABILITIES, abs=0.03)


def test_a_low_temperature_sharpens():
    sharper = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    assert drawn(temperature=0.5) == pytest.approx(sharper, abs=0.03)


def test_top_k_keeps_the_k_likeliest():
    assert drawn(temperature=1.0, top_k=2) == pytest.approx([0, 4 / 7, 0, 3 / 7], abs=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    assert np.flatnonzero(drawn(temperature=1.0, top_p=top_p)).tolist() == kept


def test_the_same_seed_draws_the_same():
    first, second = (
        [next_token(LOGITS, np.random.default_rng(7), temperature=1.0) for _ in range(5)] for _ in range(2)
    )
    assert first == second


def test_scores_of_minus_infinity_are_never_drawn():
    logits = np.array([0.0, -np.inf, 0.0])
    rng = np.random.default_rng(0)
    assert {next_token(logits, rng, temperature=1.0) for _ in range(50)} == {0, 2}
