"""What each weight of a model can become, and what comes of one choice for all of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxq.analysis.laboratory import Effect, Laboratory, Progress
from onnxq.analysis.trial import Trial
from onnxq.methods.allocate.pareto import Frontier, frontier
from onnxq.model.sites import Weight
from onnxq.passes.solutions import Solutions
from onnxq.recipes import QuantSpec, Role


@dataclass(frozen=True)
class Assignment:
    """A format for every weight, measured as a whole.

    Attributes:
        name: What it is.
        bits: Stored for each element of the weights, with scales and zero points, on average.
        size_bytes: Stored for all of them.
        predicted: Sum of what each weight does to the predictions alone, KL in nats.
        measured: KL of the predictions with all of them quantized, in nats.
        loss_change: Of the mean negative log-likelihood of the right answers; NaN where they are not known.
    """

    name: str
    bits: float
    size_bytes: int
    predicted: float
    measured: float
    loss_change: float


@dataclass(frozen=True)
class Option:
    """What one weight can become.

    Attributes:
        rung: Number of the recipe; -1 where the weight stays float.
        size_bytes: Stored.
        loss: KL of the predictions with this weight alone, in nats.
        spec: How it is quantized; None where it stays float.
    """

    rung: int
    size_bytes: int
    loss: float
    spec: QuantSpec | None


class Layers:
    """The weights of a model with all their options, each solved once and kept on the disk.

    Attributes:
        lab: Where they are judged.
        effects: What each weight does in each format, alone.
        options: For each weight that some recipe quantizes one for each recipe.
        elements: Of these weights.
    """

    def __init__(self, lab: Laboratory, threads: int | None = None, progress: Progress | None = None) -> None:
        """Solve and judge every weight by every recipe."""
        self.lab = lab
        self._solutions = Solutions(lab.folder / "solutions", {})
        found: dict[tuple[int, int], Effect] = {}
        for at, rung, effect, solution in lab.effects(threads, progress):
            found[at, rung] = effect
            self._solutions.put(self._number(at, rung), solution)
        self.effects = tuple(found.values())
        self._at = tuple(sorted({at for at, _ in found}))
        self.options = tuple(tuple(self._options(at, found)) for at in self._at)
        self.elements = sum(lab.weights[at].size for at in self._at)

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Those that some recipe quantizes, in model order."""
        return tuple(self.lab.weights[at] for at in self._at)

    def _number(self, at: int, rung: int) -> int:
        return at * len(self.lab.plans) + rung

    def _options(self, at: int, found: dict[tuple[int, int], Effect]) -> Iterator[Option]:
        floats = Option(-1, self.lab.weights[at].size_bytes, 0.0, None)
        for rung, plan in enumerate(self.lab.plans):
            effect = found.get((at, rung))
            yield floats if effect is None else Option(rung, effect.size_bytes, effect.kl, plan.decisions[at].spec)

    def frontier(self, lowest: int = 0) -> Frontier:
        """The best uses of all budgets, without the first few recipes."""
        allowed = [options[lowest:] for options in self.options]
        return frontier(
            [[each.size_bytes for each in options] for options in allowed],
            [[each.loss for each in options] for options in allowed],
        )

    def judge(self, name: str, chosen: Sequence[int], trial: Trial | None = None) -> Assignment:
        """Measure an assignment, the number of an option for each weight; on other data if there is another trial."""
        trial = trial or self.lab.trial
        taken = [options[number] for options, number in zip(self.options, chosen, strict=True)]
        replaced = []
        for at, option in zip(self._at, taken, strict=True):
            if option.rung >= 0:
                solution = self._solutions.get(self._number(at, option.rung))
                if not isinstance(solution, str):
                    replaced.append((self.lab.weights[at], solution.weight()))
        found = trial.judge(replaced)
        size_bytes = sum(option.size_bytes for option in taken)
        return Assignment(
            name=name,
            bits=8 * size_bytes / self.elements,
            size_bytes=size_bytes,
            predicted=sum(option.loss for option in taken),
            measured=found.kl,
            loss_change=found.loss - trial.loss,
        )

    def decided(self, chosen: Sequence[int]) -> Iterator[tuple[str, Role, QuantSpec | str]]:
        """What an assignment says about each weight, under the name that people know it by."""
        called = Counter(name for weight in self.lab.weights for name in weight.names)
        for at, options, number in zip(self._at, self.options, chosen, strict=True):
            weight, spec = self.lab.weights[at], options[number].spec
            name = weight.label if called[weight.label] == 1 else weight.name
            yield name, weight.role, spec or "every format that fits the budget costs more than it saves"
