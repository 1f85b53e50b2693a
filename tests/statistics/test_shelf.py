"""Answers that are too many for memory lie in files without a name, and say the same."""

import numpy as np
import pytest

from onnxq.statistics.requests import Key
from onnxq.statistics.shelf import Shelf

KEY = Key("x", "hessian", "axis -1")


@pytest.mark.parametrize("expected_bytes", [0, 1 << 40])
@pytest.mark.parametrize("shape", [(), (7,), (512, 512)])
def test_answers_are_combined(expected_bytes, shape, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rng = np.random.default_rng(0)
    answers = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
    for merge, expected in (("sum", np.sum), ("min", np.min), ("max", np.max)):
        shelf = Shelf(expected_bytes)
        for answer in answers:
            shelf.add(KEY, np.asarray(answer), merge)
        total = shelf.answers[KEY]
        assert np.array_equal(total, expected(np.asarray(answers, np.float64), axis=0))
        assert isinstance(total, np.memmap) == (expected_bytes > 0 and shape == (512, 512))
    assert list(tmp_path.iterdir()) == []


def test_weights_of_sums():
    shelf = Shelf(0)
    shelf.add(KEY, np.asarray(8.0), "sum", -0.25)
    shelf.add(KEY, np.asarray(8.0), "sum", 0.5)
    assert shelf.answers[KEY] == 2
