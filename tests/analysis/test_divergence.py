import math

import numpy as np
import pytest

from onnxq.analysis.divergence import Reference, Sums, log_probabilities
from onnxq.errors import DataError, NonFiniteError

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(2, 5, 7)).astype(np.float32)
CHANGED = (SCORES + RNG.normal(size=SCORES.shape) * 0.3).astype(np.float32)
TARGETS = RNG.integers(-1, 7, (2, 5))


def softmax(scores):
    exponents = np.exp(scores.astype(np.float64))
    return exponents / exponents.sum(-1, keepdims=True)


def judged(known, changed, targets=None, tmp_path=None):
    reference, sums = Reference(tmp_path), Sums()
    reference.learn(known, targets)
    reference.compare(0, changed, sums)
    return sums.result()


def test_sums_are_those_of_the_definitions(tmp_path):
    p, q = softmax(SCORES), softmax(CHANGED)
    found = judged(SCORES, CHANGED, TARGETS, tmp_path)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-5)
    right = TARGETS >= 0
    assert found.loss == pytest.approx(-np.log(q[right, TARGETS[right]]).mean(), rel=1e-5)
    assert found.agreement == (SCORES.argmax(-1) == CHANGED.argmax(-1)).mean()
    error = np.square(SCORES - CHANGED).sum()
    assert found.sqnr_db == pytest.approx(10 * np.log10(np.square(SCORES).sum() / error), abs=1e-4)


def test_probabilities_are_taken_as_they_are(tmp_path):
    p, q = softmax(SCORES).astype(np.float32), softmax(CHANGED).astype(np.float32)
    assert judged(p, q, None, tmp_path).kl == pytest.approx(judged(SCORES, CHANGED, None, tmp_path).kl, rel=1e-4)
    assert np.isfinite(log_probabilities(np.eye(3, dtype=np.float32), probabilities=True)).all()


def test_a_model_does_not_diverge_from_itself(tmp_path):
    found = judged(SCORES, SCORES.copy(), None, tmp_path)
    assert (found.kl, found.agreement, found.sqnr_db) == (0.0, 1.0, math.inf)
    assert math.isnan(found.loss)


def test_a_changed_model_that_gives_nan_is_infinitely_far(tmp_path):
    broken = CHANGED.copy()
    broken[0, 0, 0] = np.nan
    assert judged(SCORES, broken, None, tmp_path).kl == math.inf


def test_long_rows_and_several_batches_add_up(tmp_path):
    known, changed = (RNG.normal(size=(6, 100_000)).astype(np.float32) for _ in range(2))
    reference, sums = Reference(tmp_path), Sums()
    for batch in (slice(0, 2), slice(2, 6)):
        reference.learn(known[batch], None)
    for number, batch in enumerate((slice(0, 2), slice(2, 6))):
        reference.compare(number, changed[batch], sums)
    p, q = softmax(known), softmax(changed)
    assert sums.result().kl == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)


def test_scores_and_targets_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(NonFiniteError, match="batch 0"):
        Reference(tmp_path).learn(np.full((2, 3), np.nan, np.float32), None)
    with pytest.raises(DataError, match="token 7, the model scores 7"):
        Reference(tmp_path).learn(SCORES, np.full((2, 5), 7))
