import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.methods.allocate.pareto import frontier

LAYERS = st.lists(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=4), min_size=1, max_size=5
)


def split(layers):
    return [[cost for cost, _ in layer] for layer in layers], [[loss for _, loss in layer] for layer in layers]


def best_of_all(layers, budget):
    """The least loss of all assignments within a budget, by trying each of them."""
    sums = [(sum(c for c, _ in chosen), sum(x for _, x in chosen)) for chosen in itertools.product(*layers)]
    return min((loss for cost, loss in sums if cost <= budget), default=None)


@given(LAYERS, st.integers(0, 200))
@settings(deadline=None)
def test_no_assignment_within_a_budget_loses_less(layers, budget):
    found = frontier(*split(layers))
    point = found.within(budget)
    assert (None if point is None else found.losses[point]) == best_of_all(layers, budget)


@given(LAYERS)
@settings(deadline=None)
def test_points_are_what_their_choices_cost_and_lose(layers):
    found = frontier(*split(layers))
    for point in range(len(found.costs)):
        chosen = [layer[number] for layer, number in zip(layers, found.choices(point), strict=True)]
        assert (sum(c for c, _ in chosen), sum(x for _, x in chosen)) == (found.costs[point], found.losses[point])
    assert (np.diff(found.costs) > 0).all()
    assert (np.diff(found.losses) < 0).all()


def test_a_thinned_frontier_stays_within_the_budget_and_close_to_the_best():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1000, 100_000, 60)
    costs = [[int(size * bits) for bits in (2, 3, 4, 6, 8)] for size in sizes]
    losses = [[float(scale * 4.0**-bits) for bits in (2, 3, 4, 6, 8)] for scale in rng.lognormal(0, 2, 60)]
    exact, thinned = frontier(costs, losses, points=1 << 20), frontier(costs, losses, points=500)
    assert len(thinned.costs) <= 501 < len(exact.costs)
    for budget in (int(sizes.sum() * bits) for bits in (2, 3.25, 5)):
        fine, coarse = exact.within(budget), thinned.within(budget)
        assert thinned.costs[coarse] <= budget
        assert thinned.losses[coarse] <= 1.02 * exact.losses[fine]


def test_a_budget_below_the_cheapest_has_no_point():
    assert frontier([[5, 9]], [[1.0, 0.0]]).within(4) is None
