import math

import numpy as np
import pytest

from onnxq.analysis.agreement import Outcomes
from onnxq.analysis.compare import compare
from onnxq.analysis.comparison import Comparison, Difference
from onnxq.analysis.execution import Execution

MODEL = """
scores (float[b, 8] x) => (float[b, 12] y, float[1] total) {
  y = MatMul(x, w)
  total = ReduceSum<keepdims=0>(y)
}
"""


def taken(a: np.ndarray, b: np.ndarray, *, batch: int | None = None) -> Outcomes:
    outcomes = Outcomes()
    size = batch or len(a)
    for first in range(0, len(a), size):
        part = slice(first, first + size)
        rows = len(a[part])
        outcomes.add("y", a[part], b[part], first=first, rows=rows, batch=rows)
    return outcomes


def test_shares_are_those_of_the_rows_whatever_the_batches():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 7, 40)).astype(np.float32)
    b = a + rng.normal(size=a.shape).astype(np.float32)
    ours, theirs = (np.argsort(-each, axis=-1, kind="stable") for each in (a, b))
    same = np.mean(ours[..., 0] == theirs[..., 0])
    shared = np.mean(
        [len({*x[:5]} & {*y[:5]}) / 5 for x, y in zip(ours.reshape(-1, 40), theirs.reshape(-1, 40), strict=True)]
    )
    for batch in (50, 8, 1):
        (found,) = taken(a, b, batch=batch).agreements()
        assert (found.rows, found.best) == (350, 5)
        assert found.same_best == pytest.approx(same)
        assert found.shared == pytest.approx(shared)


def test_with_few_classes_only_the_best_one_counts():
    a = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    (found,) = taken(a, a[:, ::-1]).agreements()
    assert (found.same_best, found.shared, found.best) == (0.0, None, 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3, 5)])
def test_what_holds_no_scores_is_not_counted(shape):
    a = np.ones(shape, np.float32)
    assert taken(a, a).agreements() == ()


def test_the_worst_samples_are_found_over_all_batches():
    rng = np.random.default_rng(1)
    a = np.sign(rng.normal(size=(23, 30))).astype(np.float32)
    b = a.copy()
    for sample, noise in {3: 0.5, 7: 0.06, 11: 1.0, 20: 0.01, 21: 0.25, 22: 0.12}.items():
        b[sample] += noise * rng.normal(size=30).astype(np.float32)
    for batch in (23, 4):
        found = taken(a, b, batch=batch).worst()
        assert [each.sample for each in found] == [11, 3, 21, 22, 7]
        for each in found:
            error = np.square(a[each.sample] - b[each.sample]).sum()
            assert each.sqnr_db == pytest.approx(10 * math.log10(np.square(a[each.sample]).sum() / error), rel=1e-4)


def test_a_sample_that_became_nan_comes_first_and_equal_ones_do_not_come():
    a = np.ones((5, 3), np.float32)
    b = a.copy()
    b[2, 1], b[4, 0] = np.nan, 1.5
    found = taken(a, b).worst()
    assert [(each.sample, each.sqnr_db == -math.inf) for each in found] == [(2, True), (4, False)]


def test_rows_that_only_fill_a_batch_do_not_count():
    a = np.arange(12, dtype=np.float32).reshape(4, 3)
    outcomes = Outcomes()
    outcomes.add("y", a, a + np.array([[0], [0], [9], [9]], np.float32), first=8, rows=2, batch=4)
    assert outcomes.agreements()[0].rows == 2
    assert outcomes.worst() == ()


def comparison(*ratios: float, nonfinite: int | None = None) -> Comparison:
    layers = tuple(
        Difference(f"layer {number}", "MatMul", "", ratio, 1.0, 0.0, int(number == nonfinite))
        for number, ratio in enumerate(ratios)
    )
    return Comparison((), layers, {}, 1, (Execution(), Execution()))


@pytest.mark.parametrize(
    ("ratios", "names"),
    [
        ((math.inf, 30.0, 28.0, 33.0, 12.0, 5.0), ("layer 2", "layer 4")),
        ((30.0, 26.0, 21.0, 16.0), None),
        ((math.inf, math.inf, 8.0), None),
        ((30.0, 36.0, 30.0, 24.0), ("layer 0", "layer 3")),
        ((30.0, -math.inf), ("layer 0", "layer 1")),
        ((), None),
    ],
)
def test_the_error_jumps_where_it_is_six_decibels_worse_than_ever_before(ratios, names):
    jump = comparison(*ratios).jump()
    assert (jump and (jump[0].name if jump[0] else "", jump[1].name)) == names


def test_nan_is_a_jump_even_in_the_first_layer():
    jump = comparison(30.0, 29.0, nonfinite=0).jump()
    assert jump is not None
    assert (jump[0], jump[1].name) == (None, "layer 0")


def test_models_are_compared_sample_by_sample(model_file):
    weight = np.random.default_rng(2).normal(size=(8, 12)).astype(np.float32)
    a, b = (
        model_file(MODEL, "a.onnx", w=weight),
        model_file(MODEL, "b.onnx", w=weight + 0.1 * np.eye(8, 12, dtype="f4")),
    )
    x = np.random.default_rng(3).normal(size=(9, 8)).astype(np.float32)
    x[6, :] = 0
    x[6, 2] = 0.01
    found = compare(a, b, data={"x": x}, batch=4, limit=None)
    y, z = x @ weight, x @ (weight + 0.1 * np.eye(8, 12))
    (agreement,) = found.agreements
    assert (agreement.name, agreement.rows) == ("y", 9)
    assert agreement.same_best == np.mean(y.argmax(1) == z.argmax(1))
    ratios = 10 * np.log10(np.square(y).sum(1) / np.square(y - z).sum(1))
    assert [each.sample for each in found.worst_samples] == np.argsort(ratios)[:5].tolist()
    assert found.to_dict()["agreements"][0]["rows"] == 9
