"""The same weights solved in several ways, to choose among them."""

from collections.abc import Iterator, Sequence
from functools import partial

from onnxq.methods.solution import Solution
from onnxq.model.load import Model
from onnxq.model.sites import Weight
from onnxq.passes.calibrate import requests
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.plan import Plan
from onnxq.passes.solving import in_order, solve, work_of
from onnxq.recipes import NonFinitePolicy
from onnxq.statistics.cache import collected
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.statistics import Statistics


def statistics_of(
    model: Model, plans: Sequence[Plan], weights: Sequence[Weight], calibration: Calibration
) -> Statistics | None:
    """What the methods of several plans want to know about activations, found in one run; None if it is nothing.

    Raises:
        DataError: The data does not fit the model.
    """
    wanted = [each for plan in plans for each in requests(plan, weights, model.ir.graph)]
    return collected(model, wanted, calibration) if wanted else None


def solve_each(
    model: Model,
    plans: Sequence[Plan],
    weights: Sequence[Weight],
    statistics: Statistics | None,
    *,
    policies: Sequence[NonFinitePolicy],
    threads: int | None = None,
) -> Iterator[tuple[int, int, Solution | str]]:
    """Solve each weight as each plan says, weight by weight; only a few solutions are in memory at a time.

    Args:
        model: Not changed.
        plans: Of the same weights.
        weights: In the order of the plans' decisions.
        statistics: From `statistics_of`.
        policies: What to do with NaN and Inf, one a plan.
        threads: Weights solved at a time; by default one a processor.

    Yields:
        The number of the weight, the number of the plan, and the solution, or why the weight is left alone; nothing
        where a plan does not quantize the weight.

    Raises:
        NonFiniteError: A weight holds NaN or Inf, and the policy of its plan is `error`.
    """
    curvatures = Curvatures(statistics)
    work = [{id(item.weight): item for item in work_of(model.ir.graph, plan, weights)} for plan in plans]
    keys = [
        (at, number) for at, weight in enumerate(weights) for number in range(len(plans)) if id(weight) in work[number]
    ]

    def solved(at: int, number: int) -> Solution | str:
        item = work[number][id(weights[at])]
        return solve(item, policies[number], curvatures.of(item.measured))

    with in_order([partial(solved, *key) for key in keys], threads) as solutions:
        for (at, number), solution in zip(keys, solutions, strict=True):
            yield at, number, solution
