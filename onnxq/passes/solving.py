"""Solve one weight of a plan: read it, see it as the solver does, and keep to the policy about NaN and Inf."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import NonFiniteError, number_of
from onnxq.formats.base import Floats
from onnxq.methods import outliers
from onnxq.methods.correct import aqer, low_rank
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import extremes, square
from onnxq.methods.solution import Solution, turned
from onnxq.methods.solve import SOLVERS
from onnxq.model.sites import Weight
from onnxq.passes.calibrate import Reading, reading_of
from onnxq.passes.form import grid_spec, grouping
from onnxq.passes.plan import Decision, Plan
from onnxq.recipes import NonFinitePolicy, QuantSpec

# Squares of numbers in between, and sums of some million of them, are normal in float32.
_SQUARABLE = 1e-16, 1e16


@dataclass(frozen=True)
class Work:
    """A weight to quantize.

    Attributes:
        weight: The weight.
        decision: What happens to it; it has a spec.
        reading: What it is multiplied with, where that is known.
    """

    weight: Weight
    decision: Decision
    reading: Reading | None

    @property
    def spec(self) -> QuantSpec:
        """How it is quantized."""
        if self.decision.spec is None:
            raise ValueError(self.weight.name)
        return self.decision.spec

    @property
    def measured(self) -> Reading | None:
        """The activation whose statistics its solver wants and can have, or None."""
        wanted = SOLVERS[self.spec.method].hessian != "no"
        return self.known if wanted else None

    @property
    def known(self) -> Reading | None:
        """The activation that it is multiplied with, where it is one matrix."""
        return self.reading if self.reading is not None and self.reading.view.groups == 1 else None

    def matrix(self) -> Floats:
        """The weight as the float model has it, [K, C]; clamped where it is not finite."""
        array = self.weight.read().reshape(grouping(self.weight, self.spec).matrix).astype(np.float32)
        return as_matrix(array if np.isfinite(array).all() else _clamped(array))

    @property
    def aims(self) -> bool:
        """Whether it makes up for the errors of the layers before it."""
        return SOLVERS[self.spec.method].hessian == "needs"


def work_of(graph: ir.Graph, plan: Plan, weights: Sequence[Weight]) -> list[Work]:
    """The weights that a plan quantizes, in its order; to be found before the first edit of the graph."""
    return [
        Work(weight, each, reading_of(weight, graph))
        for weight, each in zip(weights, plan, strict=True)
        if each.spec is not None
    ]


@contextmanager
def in_order(calls: Iterable[Callable[[], Solution | str]], threads: int | None) -> Iterator[Iterator[Solution | str]]:
    """What the calls give, in their order; the context ends the threads.

    Args:
        calls: Each for one weight.
        threads: That call; by default one a processor. Beside the result just taken, one for each is being made or
            waits, and no more.
    """
    workers = threads or os.cpu_count() or 1
    pending: deque[Future[Solution | str]] = deque()

    def results() -> Iterator[Solution | str]:
        for call in calls:
            pending.append(executor.submit(call))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    with ThreadPoolExecutor(workers) as executor:
        try:
            yield results()
        finally:
            for future in pending:
                future.cancel()


def solve(item: Work, policy: NonFinitePolicy, curvature: Curvature | None, xp: Any = np) -> Solution | str:
    """Codes and scales of one weight, or why it is left alone.

    Args:
        item: The weight.
        policy: What to do with NaN and Inf.
        curvature: Of its reading; only where its solver wants one.
        xp: Array module that computes.

    Raises:
        NonFiniteError: It holds NaN or Inf, and the policy is `error`.
    """
    weight, spec = item.weight, item.spec
    array, grid = weight.read().reshape(grouping(weight, spec).matrix), grid_spec(weight, spec)
    solver = SOLVERS[spec.method]

    def rounded(array: np.ndarray) -> Solution:
        if spec.outliers is None:
            found, rest = solver.solve(array, grid, curvature, xp), array
        else:
            sparse, rest = outliers.take(array, spec.outliers, grid)
            found = solver.solve(rest, grid, curvature, xp)
            found = replace(found, outliers=sparse, squared_norm=square(array.astype(np.float32)))
        if spec.low_rank is None:
            return found
        h = None if curvature is None else curvature.matrix
        return replace(found, low_rank=low_rank.factors(rest[0] - found.decode()[0], h, spec.low_rank))

    def solved(array: np.ndarray) -> Solution | str:
        if spec.method != "rtn" and (reason := _beyond_squares(array, spec.method)):
            return reason
        if curvature is None:
            found = rounded(array)
        elif array.shape[2] != 1:
            found = _aimed(array, curvature, rounded)
        else:
            # Rows are output channels here: seen as [1, K, C] they share one curvature.
            found = _aimed(turned(array), curvature, rounded).turned()
        return _unless_lost(found)

    try:
        return solved(array)
    except NonFiniteError as error:
        # A name may hold what means something in a glob.
        what, glob_of_it = unusable(weight), escape(weight.name)
        if what is None:
            raise NonFiniteError(
                f"weight '{weight.name}': {error}; leave it float with --exclude '{glob_of_it}'"
            ) from error
        if policy == "error":
            raise NonFiniteError(
                f"{what}; leave it float with --non-finite skip or --exclude '{glob_of_it}', or clamp it with "
                "--non-finite clamp"
            ) from None
        if policy == "skip":
            return what
        return solved(_clamped(array))


def _beyond_squares(array: np.ndarray, method: str) -> str | None:
    """Why a method that adds up squares in float32 can do nothing with a weight; None where it can.

    Raises:
        NonFiniteError: It holds NaN or Inf.
    """
    low, high = extremes(array, None)
    largest = max(float(high.max()), -float(low.min()))
    if largest == 0 or _SQUARABLE[0] < largest < _SQUARABLE[1]:
        return None
    return f"its numbers, up to {largest:.1g}, have no squares in float32, which method {method} needs; rtn does not"


def _unless_lost(solution: Solution) -> Solution | str:
    """A solution that is something else than zeros; else why the weight is better left alone."""
    # What makes up for other errors may lie further from the weight than zeros do.
    if solution.squared_error < solution.squared_norm or solution.squared_norm == 0 or solution.decode().any():
        return solution
    return "rounding would leave nothing of it: its numbers are too small for its scales"


def unusable(weight: Weight) -> str | None:
    """What is wrong with a weight that holds NaN or Inf; None for another."""
    bad = np.argwhere(~np.isfinite(weight.read().astype(np.float32)))
    if not len(bad):
        return None
    return f"weight '{weight.name}' has {number_of(len(bad), 'NaN or Inf value')} (first at {bad[0].tolist()})"


def _aimed(weight: np.ndarray, curvature: Curvature, rounded: Callable[[np.ndarray], Solution]) -> Solution:
    """The solution of a finite weight [1, K, C] that makes up for the errors of its inputs, where they are known."""
    if curvature.correction is None:
        return rounded(weight)
    exact = weight.astype(np.float32)
    solution = rounded(aimed(exact[0], curvature)[None])
    error = solution.weight() - exact
    return replace(solution, squared_error=float(np.vdot(error, error)), squared_norm=float(np.vdot(exact, exact)))


def aimed(weight: Floats, curvature: Curvature) -> Floats:
    """What is rounded in the place of a weight [K, C]."""
    if curvature.correction is None:
        return weight
    moved = curvature.correction.astype(np.float64) @ weight
    return np.asarray(weight + aqer.SHARE * moved, np.float32)


def as_matrix(array: np.ndarray) -> np.ndarray:
    """[1, K, C], or [C, K, 1] of a convolution, as [K, C]."""
    matrix: np.ndarray = (array if array.shape[2] != 1 else turned(array))[0]
    return matrix


def _clamped(array: np.ndarray) -> np.ndarray:
    """NaN becomes zero, Inf the largest finite magnitude of the tensor."""
    floats = array.astype(np.float32)
    largest = np.abs(floats[np.isfinite(floats)]).max(initial=0)
    return np.nan_to_num(floats, copy=False, nan=0.0, posinf=largest, neginf=-largest)
