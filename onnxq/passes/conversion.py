"""What a conversion is asked to do, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.errors import UsageError
from onnxq.model.load import Model
from onnxq.passes.cache import CachePlan
from onnxq.passes.plan import Plan
from onnxq.passes.quantize import Result
from onnxq.passes.rounding import ActivationPlan
from onnxq.passes.selection import Selection
from onnxq.passes.step import Change, Context
from onnxq.passes.target import Target
from onnxq.recipes import Recipe
from onnxq.statistics.calibration import Calibration

Progress = Callable[[str, int, int], None]
"""Called with the weight just done, elements done, and elements in all."""


@dataclass(frozen=True)
class Conversion:
    """What is asked for; `onnxq.quantize` says what each means.

    Attributes:
        recipe: Which weights are quantized, and how.
        target: Where the model goes.
        selection: What the caller picks beside the recipe.
        calibration: Data to run the model on.
        statistics: A file of statistics, in place of the data.
        sequential: Whether layers are solved one behind the other; None to let the recipe's methods decide.
        resume: A folder where solved weights are kept.
        device: `cpu` or `cuda`: where weights are solved.
        threads: Weights solved at a time.
        progress: Told about each weight when it is done.
    """

    recipe: Recipe
    target: Target
    selection: Selection = field(default_factory=Selection)
    calibration: Calibration | None = None
    statistics: str | Path | None = None
    sequential: bool | None = None
    resume: str | Path | None = None
    device: str = "cpu"
    threads: int | None = None
    progress: Progress | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: Two of the arguments exclude each other, or one is out of range.
        """
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; at least one has to work")
        if self.calibration is not None and not isinstance(self.calibration, Calibration):
            raise UsageError(
                f"calibration is a {type(self.calibration).__name__}; data goes in as onnxq.Calibration(data), which "
                "says how much of it is run at a time"
            )
        if self.calibration is not None and self.statistics is not None:
            raise UsageError("give either calibration data (--calib) or a file of statistics (--stats), not both")
        if self.resume is not None and self.sequential is False:
            raise UsageError("only a run that goes layer by layer can be resumed: leave out --at-once, or --resume")
        if (self.sequential or self.resume is not None) and self.calibration is None:
            raise UsageError(
                "to go layer by layer (--sequential, --resume) the model is run on data: give --calib DATA; a file of "
                "statistics cannot stand for it"
            )

    def context(self, folder: Path) -> Context:
        """What a step on the float model has to go by; it keeps its files in the folder."""
        return Context(self.recipe, self.target, self.selection, self.calibration, folder)


@dataclass(frozen=True)
class Converted:
    """A model in its new form.

    Attributes:
        model: Its graph is the quantized one, and its weights lie in the sink, or in the folder of the conversion.
        plan: What was decided about each weight.
        changes: What the steps did before the weights were quantized, and what was corrected afterwards.
        activations: What was decided about each activation.
        results: What became of each weight that the plan quantizes, in its order.
        cache: What was decided about the cache of keys and values.
        notes: What the methods know about activations, and what the cache of keys and values takes, in sentences.
        warnings: What may cost accuracy, and what was asked for and not done.
    """

    model: Model
    plan: Plan
    changes: tuple[Change, ...]
    activations: ActivationPlan
    results: tuple[Result, ...]
    cache: CachePlan
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def is_changed(self) -> bool:
        """The model is not the one that came in."""
        quantized = self.activations.sites or any(each.skipped is None for each in self.results)
        return bool(quantized or self.cache.quantized) or any(each.done for each in self.changes)
