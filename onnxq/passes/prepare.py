"""Rewrites of the float model before its weights are quantized."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onnxq.model.load import Model, load
from onnxq.model.save import Staging, stage
from onnxq.passes.activation_plan import ActivationPlan, plan_activations
from onnxq.passes.calibrate import ranges_for
from onnxq.passes.finish import finish
from onnxq.passes.fold_norms import fold_norms
from onnxq.passes.plan import Selection
from onnxq.passes.quantize_activations import quantize_activations
from onnxq.passes.target import Target
from onnxq.recipes import Recipe
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.statistics import Statistics

Edit = Callable[[Model, Staging], bool]
"""Changes the graph of a model, appends the tensors it makes to the staging, and says whether anything changed."""


@dataclass(frozen=True)
class Prepared:
    """A float model, ready for its weights to be quantized.

    Attributes:
        model: The model that was given, or one that stands for it.
        activations: What was decided about its activations; those that are quantized are rounded in the model.
        ranges: What their static scales come from; None where there are none.
    """

    model: Model
    activations: ActivationPlan
    ranges: Statistics | None = None


def prepare(
    model: Model,
    recipe: Recipe,
    target: Target,
    selection: Selection,
    calibration: Calibration | None,
    statistics: str | Path | None,
    folder: Path,
) -> Prepared:
    """The float model whose weights are quantized.

    Args:
        model: Its graph is changed.
        recipe: What to do.
        target: Where the model goes.
        selection: What the caller picks beside the recipe.
        calibration: Data to run the model on.
        statistics: A file of statistics of this model, in place of the data.
        folder: Keeps the files of the prepared model, and must be there as long as it is used.

    Raises:
        UsageError: Ranges of activations need data and there is none.
        DataError, NonFiniteError, OutputError, SessionError: See `onnxq.quantize`.
    """
    planned = plan_activations(model.ir, recipe, target, selection)
    if not planned.sites:
        return Prepared(model, planned)
    wanted = planned.requests()
    measured = ranges_for(model, wanted, calibration, statistics)
    made: list[ActivationPlan] = []

    def edit(model: Model, staging: Staging) -> bool:
        fold_norms(model.ir, [node for site in planned.sites for node, _ in site.uses], staging)
        # Of the graph as it is now; values have kept their names.
        made.append(plan_activations(model.ir, recipe, target, selection))
        quantize_activations(model.ir, made[0].sites, measured, staging)
        finish(model.ir, made[0].opset, made[0].ir_version)
        return True

    return Prepared(rewritten(model, edit, folder), made[0], measured if wanted else None)


def rewritten(model: Model, edit: Edit, folder: Path) -> Model:
    """A model after an edit: written to a folder and loaded from there, so that its weights take no memory.

    Args:
        model: Its graph is changed.
        edit: What is done to it.
        folder: Keeps the files as long as the new model is used.

    Raises:
        OutputError: The disk is full or failed.
    """
    place = Path(tempfile.mkdtemp(prefix="prepared-", dir=folder))
    with stage(place / "model.onnx") as staging:
        if not edit(model, staging):
            return model
        written = staging.commit(model)
    return load(written)
