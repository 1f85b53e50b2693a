"""`round_activations`: measure ranges, fold what must be folded, and round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxq.errors import UsageError
from onnxq.model.load import Model
from onnxq.model.save import Staging
from onnxq.passes.finish import finish
from onnxq.passes.rounding.insert import quantize_activations
from onnxq.passes.rounding.norms import fold_norms
from onnxq.passes.rounding.plan import ActivationPlan, plan_activations
from onnxq.passes.step import Context, rewritten
from onnxq.statistics.cache import load_statistics
from onnxq.statistics.statistics import Statistics


@dataclass(frozen=True)
class Rounded:
    """A float model whose activations are rounded.

    Attributes:
        model: The model that was given, or one that stands for it.
        plan: What was decided about its activations.
        ranges: What static scales come from; None where there are none.
        exact: For the name of each rounded value that of the value before.
    """

    model: Model
    plan: ActivationPlan
    ranges: Statistics | None
    exact: Mapping[str, str] = field(default_factory=dict)


def round_activations(model: Model, context: Context, file: str | Path | None = None) -> Rounded:
    """Put a pair of Q and DQ, or a function in its place, behind every activation that the recipe quantizes.

    Args:
        model: Its graph is changed.
        context: What the step has to go by.
        file: Statistics of this model, in place of the data.

    Raises:
        UsageError: Static scales need data and there is none.
        DataError, NonFiniteError, SessionError, OutputError: As `Context.statistics` and `rewritten`.
    """
    planned = plan_activations(model.ir, context.recipe, context.target, context.selection)
    if not planned.sites:
        return Rounded(model, planned, None)
    ranges = _ranges(model, planned, context, file)
    made: list[ActivationPlan] = []
    exact: dict[str, str] = {}

    def edit(model: Model, staging: Staging) -> bool:
        fold_norms(model.ir, [node for site in planned.sites for node, _ in site.uses], staging)
        # Of the graph as it is now; values have kept their names.
        made.append(plan_activations(model.ir, context.recipe, context.target, context.selection))
        quantize_activations(model.ir, made[0].sites, ranges or Statistics({}), staging)
        exact.update(
            (str(value.name), str(site.value.name))
            for site in made[0].sites
            for node, index in site.uses
            if (value := node.inputs[index]) is not None
        )
        finish(model.ir, made[0].opset, made[0].ir_version)
        return True

    return Rounded(rewritten(model, edit, context.folder), made[0], ranges, exact)


def _ranges(model: Model, planned: ActivationPlan, context: Context, file: str | Path | None) -> Statistics | None:
    """What static scales come from; None where there are none."""
    wanted = planned.requests()
    if not wanted:
        return None
    if file is not None:
        return load_statistics(file, model, wanted)
    if context.calibration is None:
        raise UsageError(
            f"recipe '{context.recipe.name}' has static scales of activations, which need data: --calib DATA or "
            "--calib synthetic; granularity: token and group need none"
        )
    return context.statistics(model, wanted, "activation")
