from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.methods.equalize.choose import Cost, choose, output_error

PLACES = 4
STREAM = PLACES - 1


def total(costs: list[Cost], rotated: tuple[bool, ...]) -> float:
    return sum(cost.at(rotated) for cost in costs)


def layers(draw_errors: list[list[float]]) -> list[Cost]:
    """Each place but the last has a layer that reads the stream, and one that writes it."""
    made = []
    for place in range(STREAM):
        first, second = (np.reshape(errors, (2, 2)) for errors in draw_errors[2 * place : 2 * place + 2])
        made += [Cost(STREAM, place, first), Cost(place, STREAM, second)]
    return made


errors = st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=2 * STREAM, max_size=2 * STREAM)


@given(errors)
def test_no_choice_is_better_where_layers_hang_on_one_stream(drawn):
    costs = layers(drawn)
    best = min(total(costs, rotated) for rotated in product((False, True), repeat=PLACES))
    assert total(costs, choose(PLACES, costs)) == pytest.approx(best)


@given(st.data())
def test_it_is_never_worse_than_all_or_none(data):
    place = st.none() | st.integers(0, PLACES - 1)
    drawn = st.lists(st.tuples(place, place, st.lists(st.floats(0, 1), min_size=4, max_size=4)), max_size=8)
    costs = [Cost(before, behind, np.reshape(table, (2, 2))) for before, behind, table in data.draw(drawn)]
    chosen = total(costs, choose(PLACES, costs))
    assert chosen <= total(costs, (False,) * PLACES) + 1e-12
    assert chosen <= total(costs, (True,) * PLACES) + 1e-12


def test_a_place_without_gain_is_left_alone():
    assert choose(2, [Cost(0, None, np.array([[0.2, 0.2], [0.1, 0.1]]))]) == (True, False)


def identity(array: np.ndarray) -> np.ndarray:
    return array


def test_exact_rounding_has_no_error_and_a_lost_output_all_of_it():
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(size=(30, 8)), rng.normal(size=(8, 5))
    assert output_error(rows, weight, identity, identity) == pytest.approx(0, abs=1e-12)
    assert output_error(rows, weight, np.zeros_like, identity) == 1
    assert output_error(rows, weight, identity, lambda array: array / 3) == pytest.approx(0, abs=1e-12)


def test_error_is_the_squared_sine_of_the_angle():
    def turned(weight: np.ndarray) -> np.ndarray:
        return np.array([[1.0, np.tan(np.pi / 6)]])

    assert output_error(np.ones((3, 1)), np.array([[1.0, 0.0]]), identity, turned) == pytest.approx(0.25)


def test_rows_count_alike_however_large_they_are():
    rows, weight = np.array([[1.0, 0.0], [0.0, 1000.0]]), np.eye(2)

    def first_lost(array: np.ndarray) -> np.ndarray:
        return array * [[0.0], [1.0]]

    assert output_error(rows, weight, first_lost, identity) == pytest.approx(0.5)


def test_rows_that_give_nothing_do_not_count():
    assert output_error(np.zeros((4, 2)), np.eye(2), identity, identity) == 0
