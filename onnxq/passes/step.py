"""What the steps have in common that rewrite the float model before its weights are quantized."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.errors import UsageError
from onnxq.model.load import Model, load
from onnxq.model.save import Staging, stage
from onnxq.model.sites import Weight
from onnxq.passes.plan import Plan, make_plan
from onnxq.passes.selection import Selection
from onnxq.passes.target import Target
from onnxq.recipes import Recipe
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.collect import collect
from onnxq.statistics.requests import Request
from onnxq.statistics.statistics import Statistics

Edit = Callable[[Model, Staging], bool]
"""Changes the graph of a model, appends the tensors it makes to the staging, and says whether anything changed."""


@dataclass(frozen=True)
class Change:
    """What a step did at one place of the model, or a correction around rounded weights, or why it did nothing.

    Attributes:
        step: In words.
        place: Name of the activation, or of the weight.
        done: What was done; None where nothing was.
        reason: Why nothing was done; None where something was.
    """

    step: str
    place: str
    done: str | None = None
    reason: str | None = None


class Refusal(Exception):  # noqa: N818
    """Why nothing is done at one place of a model; who tries it makes a `Change` of it."""


@dataclass(frozen=True)
class Context:
    """What a step has to go by.

    Attributes:
        recipe: What happens to the weights afterwards.
        target: Where the model goes.
        selection: What the caller picks beside the recipe.
        calibration: Data to run the model on, or None.
        folder: For what lies on the disk meanwhile.
    """

    recipe: Recipe
    target: Target
    selection: Selection
    calibration: Calibration | None
    folder: Path

    def plan(self, model: Model) -> tuple[Plan, list[Weight]]:
        """What will happen to each weight of a model."""
        return make_plan(model.ir, self.recipe, self.target, self.selection)

    def data(self, model: Model, step: str) -> Calibration:
        """The data for a step that looks at activations.

        It comes without its cache, which belongs to the model that came in.

        Raises:
            UsageError: There is none, or it can be gone through only once.
            DataError: It does not fit the model.
        """
        if self.calibration is None:
            raise UsageError(
                f"the step '{step}' of recipe '{self.recipe.name}' looks at activations: it needs data, --calib DATA "
                "or --calib synthetic (a file of statistics is of the model before this step)"
            )
        if self.calibration.batches(model).once:
            raise UsageError(
                f"the step '{step}' of recipe '{self.recipe.name}' goes through the data once more than an iterator "
                "allows: give a list of feeds, or arrays"
            )
        return replace(self.calibration, cache=None)

    def statistics(self, model: Model, requests: Sequence[Request], step: str) -> Statistics:
        """Answers about the activations of a model, on behalf of a step.

        Raises:
            UsageError: As `data`.
            DataError, NonFiniteError, SessionError: As `collect`.
        """
        return collect(model, requests, self.data(model, step))


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
