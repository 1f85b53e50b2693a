import math

import pytest

from onnxq.methods.allocate.spikes import exempt, kappa


def test_kappa_is_the_largest_value_over_the_median_of_the_tokens():
    assert kappa([2.0, 2.0, 2.0, 600.0]) == 300.0
    assert kappa([1.0, 2.0, 3.0]) == 1.5


@pytest.mark.parametrize(("peaks", "wanted"), [([], 1.0), ([0.0, 0.0], 1.0), ([0.0, 0.0, 3.0], math.inf)])
def test_kappa_of_what_has_no_median(peaks, wanted):
    assert kappa(peaks) == wanted


def test_layers_above_the_threshold_are_exempt_the_largest_first():
    assert exempt([3.0, 21.0, 20.0, math.inf, 40.0]) == [3, 4, 1]
    assert exempt([3.0, 21.0], threshold=2.0) == [1, 0]
