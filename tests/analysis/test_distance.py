import math

import numpy as np
import pytest

from onnxq.analysis.distance import Distance


def distance(*pairs):
    sums = Distance()
    for a, b in pairs:
        sums.add(np.float32(a), np.float32(b))
    return sums


def test_the_sums_over_batches_are_those_over_everything():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 70_000)).astype(np.float32)
    b = (a + rng.normal(scale=0.01, size=a.shape)).astype(np.float32)
    whole, parts = distance((a, b)), distance(*zip(a, b, strict=True))
    exact = a.astype(np.float64), b.astype(np.float64)
    noise = ((exact[0] - exact[1]) ** 2).sum()
    for sums in (whole, parts):
        assert sums.sqnr_db == pytest.approx(10 * np.log10((exact[0] ** 2).sum() / noise), rel=1e-12)
        cosine = (exact[0] * exact[1]).sum() / np.linalg.norm(exact[0]) / np.linalg.norm(exact[1])
        assert sums.cosine == pytest.approx(cosine, rel=1e-12)
        assert sums.max_abs == np.abs(exact[0] - exact[1]).max()


@pytest.mark.parametrize(
    ("a", "b", "sqnr_db", "cosine"),
    [
        ([1, 2], [1, 2], math.inf, 1.0),
        ([0, 0], [0, 0], math.inf, 1.0),
        ([0, 0], [1, 0], -math.inf, 0.0),
        ([1, 0], [0, 0], 0.0, 0.0),
        ([1, 0], [-1, 0], 10 * math.log10(1 / 4), -1.0),
    ],
)
def test_the_ends_of_the_scales(a, b, sqnr_db, cosine):
    sums = distance((a, b))
    assert (sums.sqnr_db, sums.cosine) == (sqnr_db, cosine)


def test_nan_and_inf_in_both_are_equal_and_in_one_are_counted():
    sums = distance(([1, np.nan, -np.inf, np.inf, 4], [1, np.nan, -np.inf, 3, np.nan]))
    assert sums.nonfinite == 2
    assert sums.sqnr_db == math.inf, "what is left is equal"
    assert distance(([np.inf], [-np.inf])).nonfinite == 1


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [(np.ones(2), np.ones(3), "shapes differ: [2] in a, [3] in b"), (np.ones(2), np.ones(2, int), "not floats")],
)
def test_what_cannot_be_compared_is_said(a, b, says):
    sums = Distance()
    sums.add(a, b)
    assert says in sums.problem


def test_scalars_and_empty_tensors_are_compared():
    assert distance((1.0, 1.5)).max_abs == 0.5
    assert distance((np.zeros((0, 3)), np.zeros((0, 3)))).sqnr_db == math.inf
