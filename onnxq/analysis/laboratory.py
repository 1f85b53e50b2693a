"""A model on the bench: loaded once, with plans and data, to judge what quantizing one weight alone does."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnxq.analysis.swapping import Swapping
from onnxq.analysis.trial import Trial, trial
from onnxq.errors import UsageError
from onnxq.methods.solution import Solution
from onnxq.model.load import Model, load
from onnxq.model.named import Named
from onnxq.model.sites import Weight
from onnxq.model.temporary import temporary_folder
from onnxq.passes.candidates import solve_each, statistics_of
from onnxq.passes.plan import Plan, make_plan
from onnxq.passes.selection import Selection
from onnxq.passes.target import Target
from onnxq.recipes import Recipe, Role
from onnxq.recipes.rungs import rung
from onnxq.recipes.spec import Method
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.data import Source
from onnxq.statistics.statistics import Statistics

Progress = Callable[[int, int, str], None]
"""(variants judged, all of them, the weight just done)"""
Rungs = str | Path | Recipe | Sequence[str | Path | Recipe]
"""One recipe or several: presets, YAML files, recipes, or formats with their groups (`onnxq.recipes.rungs.rung`)."""


@dataclass(frozen=True)
class Effect(Named):
    """One weight quantized by one recipe, all others float.

    Attributes:
        role: What it is for.
        shape: As the operators read it.
        recipe: Name of the recipe.
        format: The format it took.
        bits: Stored for each element, with scales and zero points.
        size_bytes: Stored in all.
        weight_sqnr_db: Signal to quantization noise of the weight.
        kl: KL(model || changed model) of the predictions, mean, in nats.
        loss_change: Of the mean negative log-likelihood of the right answers, in nats; NaN where they are not known.
        agreement: Share of predictions that stay the same.
        output_sqnr_db: Power of the scores over that of their change.
    """

    role: Role
    shape: tuple[int, ...]
    recipe: str
    format: str
    bits: float
    size_bytes: int
    weight_sqnr_db: float
    kl: float
    loss_change: float
    agreement: float
    output_sqnr_db: float


@dataclass(frozen=True)
class Laboratory:
    """A model opened once, the plans of several recipes, and data to judge variants on.

    Attributes:
        model: The float model.
        recipes: One a plan.
        plans: What each recipe does to each weight.
        weights: In the order of the plans' decisions.
        trial: Judges variants.
        statistics: For methods that want them.
        swapping: The model and its variants.
        folder: For what does not fit in memory.
    """

    model: Model
    recipes: tuple[Recipe, ...]
    plans: tuple[Plan, ...]
    weights: tuple[Weight, ...]
    trial: Trial
    statistics: Statistics | None
    swapping: Swapping
    folder: Path

    @property
    def cases(self) -> int:
        """How many pairs of a weight and a recipe that quantizes it there are."""
        return sum(len(plan.quantized) for plan in self.plans)

    def effects(
        self, threads: int | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[int, int, Effect, Solution]]:
        """Judge each weight by each recipe: the numbers of both, what comes of it, and the solution."""
        solved = solve_each(
            self.model,
            self.plans,
            self.weights,
            self.statistics,
            policies=[recipe.non_finite for recipe in self.recipes],
            threads=threads,
        )
        for done, (at, number, solution) in enumerate(solved):
            weight, decision = self.weights[at], self.plans[number].decisions[at]
            if not isinstance(solution, str):
                found = self.trial.judge([(weight, solution.weight())])
                effect = Effect(
                    weight=decision.weight,
                    label=decision.label,
                    op=decision.op,
                    readers=decision.readers,
                    role=decision.role,
                    shape=decision.shape,
                    recipe=self.recipes[number].name,
                    format=solution.format.name,
                    bits=8 * decision.planned_bytes / max(weight.size, 1),
                    size_bytes=decision.planned_bytes,
                    weight_sqnr_db=solution.sqnr_db,
                    kl=found.kl,
                    loss_change=found.loss - self.trial.loss,
                    agreement=found.agreement,
                    output_sqnr_db=found.sqnr_db,
                )
                yield at, number, effect, solution
            if progress is not None:
                progress(done + 1, self.cases, decision.weight)


@contextmanager
def laboratory(
    model: Model | str | Path,
    data: Source,
    recipes: Rungs,
    *,
    target: Target = "ort",
    method: Method | None = None,
    calibration: Calibration | None = None,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = 16,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    selection: Selection | None = None,
) -> Iterator[Laboratory]:
    """Open a model for judging variants of it, whose bytes are those of a target; otherwise as for `sensitivity`."""
    loaded = model if isinstance(model, Model) else load(model)
    several = [recipes] if isinstance(recipes, str | Path | Recipe) else list(recipes)
    chosen = tuple(_weights_only(rung(each, method)) for each in several)
    made = [make_plan(loaded.ir, recipe, target, selection or Selection()) for recipe in chosen]
    if not made:
        raise UsageError("name at least one recipe or format")
    plans, weights = tuple(plan for plan, _ in made), tuple(made[0][1])
    # Each plan comes with weights of its own; those of the first stand for all.
    concerned = [weight for at, weight in enumerate(weights) if any(plan.decisions[at].spec for plan in plans)]
    seen_on = calibration or Calibration(data, sequence=sequence, providers=providers)
    statistics = statistics_of(loaded, plans, weights, seen_on)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        swapping = Swapping(loaded, concerned, stack, providers=providers, threads=threads)
        judge = trial(swapping, data, folder, sequence=sequence, batch=batch, limit=limit)
        yield Laboratory(loaded, chosen, plans, weights, judge, statistics, swapping, folder)


def _weights_only(recipe: Recipe) -> Recipe:
    """The recipe, if it changes nothing but weights."""
    if recipe.equalize or recipe.cache or recipe.correct or any(rule.activation for rule in recipe.rules):
        raise UsageError(
            f"recipe '{recipe.name}' changes more than weights, and layers are judged by their weights alone: give one "
            "without equalize, correct, activation and cache"
        )
    return recipe
