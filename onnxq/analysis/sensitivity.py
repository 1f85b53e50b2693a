"""What each layer does to the whole: it alone is quantized, and the predictions are compared with the model's own."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxq.analysis.laboratory import Effect, Progress, Rungs, laboratory
from onnxq.model.load import Model
from onnxq.recipes.spec import Method
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.data import Source


@dataclass(frozen=True)
class Sensitivity:
    """What each weight alone does to the predictions.

    Attributes:
        effects: For each weight one for each recipe that quantizes it, in model order.
        skipped: Weights that no recipe quantizes, with the reason of the first.
        loss: Of the model itself; NaN where no right answers are known.
        samples: Windows of tokens, or samples.
        runs: Variants that ran, each on all samples.
        run_seconds: Spent on them.
        load_seconds: What loading the model took; each variant would cost that too if it were loaded.
    """

    effects: tuple[Effect, ...]
    skipped: dict[str, str]
    loss: float
    samples: int
    runs: int
    run_seconds: float
    load_seconds: float

    def worst(self, count: int | None = None) -> list[Effect]:
        """Those that change the predictions most first."""
        return sorted(self.effects, key=lambda each: -each.kl)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def sensitivity(
    model: Model | str | Path,
    data: Source,
    recipes: Rungs = "int4",
    *,
    method: Method | None = None,
    calibration: Calibration | None = None,
    sequence: int = 256,
    batch: int = 8,
    limit: int | None = 16,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Quantize each layer alone, and measure what that does to the predictions.

    The model is loaded once: its weights are inputs of one session, and each variant swaps one of them.

    Args:
        model: A loaded model, or the path of one.
        data: What it is run on: token ids, or named arrays (with `labels`, the loss is measured too).
        recipes: How layers are quantized: presets, files, recipes, or formats with their groups, such as `int3-g64`.
        method: In place of the methods that the recipes name.
        calibration: For methods that look at activations; by default the data itself, up to 128 windows or samples.
        sequence: Tokens in a window, where the data is a stream of tokens.
        batch: Windows or samples run at once.
        limit: Use only the first `limit` windows or samples to judge on; None uses all.
        providers: Onnxruntime's execution providers.
        threads: Threads within one operator, and weights solved at a time.
        progress: Called after each variant.

    Raises:
        UsageError, RecipeError: There is no such recipe or format.
        ModelError, UnsafeModelError: The model is broken.
        DataError: The data does not fit the model.
        NonFiniteError: A weight, an activation or a score is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
    """
    with laboratory(
        model,
        data,
        recipes,
        method=method,
        calibration=calibration,
        sequence=sequence,
        batch=batch,
        limit=limit,
        providers=providers,
        threads=threads,
    ) as lab:
        effects = tuple(effect for _, _, effect, _ in lab.effects(threads, progress))
        measured = {effect.weight for effect in effects}
        return Sensitivity(
            effects=effects,
            skipped={
                each.weight: each.reason or "holds NaN or Inf" for each in lab.plans[0] if each.weight not in measured
            },
            loss=lab.trial.loss,
            samples=lab.trial.samples,
            runs=lab.trial.runs,
            run_seconds=lab.trial.run_seconds,
            load_seconds=lab.swapping.load_seconds,
        )
