"""`Layers`: the weights of a plan on their way to solutions, and what is corrected around them."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TypedDict, Unpack

from onnxq.methods.backend import get_module
from onnxq.methods.solution import Solution
from onnxq.passes.calibrate import Reading
from onnxq.passes.correct import Corrected, Corrections, Seen
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import in_order, solve
from onnxq.recipes import NonFinitePolicy
from onnxq.statistics.requests import Request, merged
from onnxq.statistics.statistics import Statistics


class Solving(TypedDict):
    """How weights are solved.

    Attributes:
        non_finite: What to do with a weight that holds NaN or Inf.
        device: `cpu` or `cuda`: where weights are solved.
        threads: How many weights are solved at a time; None for as many as there are processors.
    """

    non_finite: NonFinitePolicy
    device: str
    threads: int | None


class Layers:
    """Solves weights when the statistics of what they read are there, and finds the corrections that go with them."""

    def __init__(
        self,
        solutions: Solutions,
        corrections: Corrections,
        *,
        float_name: Callable[[str], str],
        **how: Unpack[Solving],
    ) -> None:
        """Nothing is solved yet but what is among the solutions.

        Args:
            solutions: Where solved weights are kept, and corrections.
            corrections: Knows the weights, and takes in what is found.
            float_name: As in `Seen`.
            how: Weights are solved.
        """
        self.work = corrections.work
        self.solutions = solutions
        self.corrections = corrections
        self._float_name = float_name
        self._how = how

    def reading(self, at: int) -> Reading | None:
        """The activation whose statistics somebody wants for a weight, or None."""
        item = self.work[at]
        return item.measured or (item.known if at in self.corrections.biases else None)

    def requests(self, numbers: Sequence[int], beside: Collection[int]) -> list[Request]:
        """What is asked for some weights.

        Args:
            numbers: Of the weights.
            beside: Those of them that are solved with what the float model has in the place of what they read.
        """
        asked = []
        for at in numbers:
            if (measured := self.work[at].measured) is not None:
                asked.append(measured.request("hessian"))
                asked += [measured.against_float()] if at in beside else []
            if at in self.corrections.biases and (known := self.work[at].known) is not None:
                own = known.request("channel_sum")
                asked += [own, replace(own, tensor=self._float_name(own.tensor))]
        return merged(asked)

    def left(self, numbers: Sequence[int]) -> list[int]:
        """Those of some weights, which are finished together, whose statistics are still wanted."""
        if not self.corrections or self.solutions.has_corrected(numbers[0]):
            return [at for at in numbers if not self.solutions.has(at)]
        # Around all of them together something is corrected.
        return list(numbers)

    def finish(self, numbers: Sequence[int], statistics: Statistics | None) -> None:
        """Solve weights and correct what is around them, as far as that is not done.

        Raises:
            NonFiniteError: A weight holds NaN or Inf, and the policy is `error`.
            OutputError: The solutions cannot be kept.
        """
        curvatures, biases = Curvatures(statistics), self.corrections.biases
        xp = get_module(self._how["device"])
        left = [at for at in numbers if not self.solutions.has(at)]

        def solved(at: int) -> Solution | str:
            curvature = curvatures.of(self.work[at].measured, centred=at in biases)
            return solve(self.work[at], self._how["non_finite"], curvature, xp)

        with in_order([partial(solved, at) for at in left], self._how["threads"]) as solutions:
            for at, solution in zip(left, solutions, strict=True):
                self.solutions.put(at, solution)
        if not self.corrections or not numbers:
            return
        if self.solutions.has_corrected(numbers[0]):
            found = Corrected.of(*self.solutions.get_corrected(numbers[0]))
        elif statistics is None:
            return
        else:
            found = self.corrections.find(numbers, Seen(statistics, self.solutions.get, self._float_name))
            self.solutions.put_corrected(numbers[0], *found.parts())
        self.corrections.found.update(found)
