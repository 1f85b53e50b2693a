import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.report.chart import Axis, steps

numbers = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_a_linear_axis_holds_all_values_in_order_between_round_ends(values):
    axis = Axis.over(values)
    assert axis.low <= min(values)
    assert max(values) < axis.high
    places = [axis.place(value) for value in sorted(values)]
    assert places == sorted(places)
    assert 2 <= len(axis.ticks) <= 8
    assert axis.ticks[0].at == 0
    assert axis.ticks[-1].at == 100


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=20))
def test_a_logarithmic_axis_ends_at_powers_of_ten(values):
    axis = Axis.over(values, log=True)
    assert axis.low <= min(values) * (1 + 1e-12)
    assert max(values) <= axis.high * (1 + 1e-12)
    assert all(math.isclose(math.log10(end), round(math.log10(end)), abs_tol=1e-9) for end in (axis.low, axis.high))
    assert 2 <= len(axis.ticks) <= 8


@pytest.mark.parametrize(
    ("values", "options", "ticks"),
    [
        ([11.2, 33.1], {"unit": "dB"}, ["10", "20", "30", "40 dB"]),
        ([31.1, 31.3], {"least": 10.0}, ["25", "30", "35", "40"]),
        ([0.01, 2], {"log": True}, ["0.01", "0.1", "1", "10"]),
        ([2e-6, 3e-5], {"log": True}, ["10⁻⁶", "10⁻⁵", "10⁻⁴"]),
        ([math.inf, 5.0, math.nan], {}, ["4", "6"]),
    ],
)
def test_labels_are_round(values, options, ticks):
    assert [tick.text for tick in Axis.over(values, **options).ticks] == ticks


def test_no_value_at_all_still_makes_an_axis():
    assert Axis.over([]).ticks
    assert Axis.over([0.0, -1.0], log=True).ticks


def test_steps_are_bars_of_equal_width_up_to_the_height():
    assert steps([0, 2, 4], 10) == "M0 10V10h1V5h1V0h1V10z"
    assert steps([0, 0], 10) == "M0 10V10h1V10h1V10z"
