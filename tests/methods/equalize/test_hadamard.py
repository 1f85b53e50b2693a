import numpy as np
import pytest

from onnxq.methods.equalize.hadamard import hadamard, has_hadamard

MISSED = {92, 116, 156, 172, 184, 188}
"""Multiples of four up to 200 that neither Sylvester nor Paley reach."""


@pytest.mark.parametrize("order", [1, 2, *(each for each in range(4, 201, 4) if each not in MISSED), 344])
def test_rows_are_signs_and_orthogonal(order):
    made = hadamard(order)
    assert has_hadamard(order)
    assert set(np.unique(made)) <= {-1.0, 1.0}
    assert np.array_equal(made @ made.T, order * np.eye(order))


@pytest.mark.parametrize("order", [0, 3, 6, 10, 22, *sorted(MISSED)])
def test_other_orders_are_unknown(order):
    assert not has_hadamard(order)
    with pytest.raises(ValueError, match=str(order)):
        hadamard(order)
