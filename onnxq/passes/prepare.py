"""`prepare`: the steps of a recipe, one after the other, on the float model."""

from collections.abc import Callable, Mapping
from typing import Any

from onnxq.model.load import Model
from onnxq.passes.equalize import equalize
from onnxq.passes.rotation.rotate import rotate
from onnxq.passes.step import Change, Context

Apply = Callable[[Model, Any, Context], tuple[Model, list[Change]]]
"""(model, step of the recipe, what it has to go by) -> the model after it, and what was done or not."""

APPLY: Mapping[str, Apply] = dict.fromkeys(("smooth", "aweq", "awq", "shift", "disassemble"), equalize) | {
    "rotate": rotate
}
"""By the method of the step."""


def prepare(model: Model, context: Context) -> tuple[Model, tuple[Change, ...]]:
    """Carry out the steps of a recipe.

    Args:
        model: Its graph is changed.
        context: What the steps have to go by.

    Returns:
        The float model whose weights are quantized, and what each step did or left alone.

    Raises:
        UsageError, DataError, NonFiniteError, SessionError, OutputError: As `Context.statistics` and `rewritten`.
    """
    changes: list[Change] = []
    for step in context.recipe.equalize:
        model, made = APPLY[step.method](model, step, context)
        changes += made
    return model, tuple(changes)
