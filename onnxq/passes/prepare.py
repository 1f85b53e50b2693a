"""Rewrites of the float model before its weights are quantized."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from onnxq.model.load import Model, load
from onnxq.model.save import Staging, stage
from onnxq.recipes import Recipe
from onnxq.statistics.calibration import Calibration

Edit = Callable[[Model, Staging], bool]
"""Changes the graph of a model, appends the tensors it makes to the staging, and says whether anything changed."""


def prepare(model: Model, _recipe: Recipe, _calibration: Calibration | None, _folder: Path) -> Model:
    """The float model whose weights are quantized."""
    return model


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
