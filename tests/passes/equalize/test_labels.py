"""Labels follow elements through shapes and parts as the elements themselves go."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxq.passes.equalize.labels import Part, reshaped
from onnxq.passes.step import Refusal

FACTORS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


def grouped(factors: list[int], cuts: set[int]) -> list[int]:
    """Sizes of the axes when neighbouring factors are merged, but for cuts between them."""
    dims = [factors[0]]
    for at, factor in enumerate(factors[1:], 1):
        if at in cuts:
            dims.append(factor)
        else:
            dims[-1] *= factor
    return dims


@given(FACTORS, st.sets(st.integers(1, 5)), st.sets(st.integers(1, 5)), st.integers(0, 63))
def test_reshaped_labels_are_those_of_the_same_elements(factors, cuts, others, unlabelled):
    source, target = grouped(factors, cuts), grouped(factors, others)
    shape = [1 if unlabelled >> at & 1 else dim for at, dim in enumerate(source)]
    labels = np.arange(np.prod(shape)).reshape(shape)
    found = reshaped(labels, source, target)
    expected = np.broadcast_to(labels, source).reshape(target)
    assert np.array_equal(np.broadcast_to(found, target), expected)


@given(FACTORS, st.sets(st.integers(1, 5)), st.sets(st.integers(1, 5)))
def test_an_unknown_axis_in_front_stays_in_front(factors, cuts, others):
    source, target = grouped(factors, cuts), grouped(factors, others)
    labels = np.arange(np.prod(source)).reshape(source)
    assume(labels.size > 1)
    found = reshaped(labels, ["batch", *source], ["batch", *target])
    assert np.array_equal(np.broadcast_to(found, [1, *target])[0], labels.reshape(target))


def test_an_unknown_axis_between_keeps_its_place():
    labels = np.arange(6).reshape(2, 1, 3)
    found = reshaped(labels, ["b", 2, "s", 3], ["b", 2, 1, "s", 3])
    assert found.tolist() == labels.reshape(2, 1, 1, 3).tolist()
    assert reshaped(np.arange(6), ["n", 6], ["m", 2, 3]).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(Refusal, match="does not tell where channels go"):
        reshaped(labels, ["b", 2, "s", 3], ["b", "t", 3])
    with pytest.raises(Refusal, match="does not tell where channels go"):
        reshaped(np.arange(6), ["n", 6], ["n", 4, "k"])


@given(st.integers(1, 6), st.data())
def test_parts_and_wholes(size, data):
    axis = data.draw(st.sampled_from([-1, -2, -3]))
    chosen = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True))
    shape = [2, 3, 4]
    shape[axis] = size
    whole, part = np.arange(np.prod(shape)).reshape(shape), Part(axis, np.array(chosen), size)
    taken = part.of(whole)
    assert np.array_equal(taken, whole.take(chosen, axis=axis))
    back = part.back(taken, alone=False)
    assert np.array_equal(back.take(chosen, axis=axis), taken)
    left = [at for at in range(size) if at not in chosen]
    assert (back.take(left, axis=axis) == -1).all()


def test_parts_of_an_axis_that_channels_do_not_depend_on():
    labels, part = np.arange(4), Part(-2, np.array([2]), 5)
    assert part.of(labels).reshape(-1).tolist() == [0, 1, 2, 3]
    assert part.back(labels, alone=True).reshape(-1).tolist() == [0, 1, 2, 3]
    assert part.back(labels, alone=False).tolist() == [[-1] * 4] * 2 + [[0, 1, 2, 3]] + [[-1] * 4] * 2
    with pytest.raises(Refusal, match="unknown size"):
        Part(-1, np.arange(0), None).of(labels)


def test_dropped_axis_comes_back():
    part = Part(-2, np.array([1]), 3, dropped=True)
    assert part.of(np.arange(6).reshape(3, 2)).tolist() == [2, 3]
    assert part.back(np.array([7, 8]), alone=False).tolist() == [[-1, -1], [7, 8], [-1, -1]]
