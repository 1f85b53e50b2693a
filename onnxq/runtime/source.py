"""From a path or a loaded model to what a session opens, through the checks of loading."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from onnxq.model.load import Model, load
from onnxq.model.probe import runnable


def checked(model: Model | str | Path) -> tuple[Model, AbstractContextManager[bytes | str]]:
    """The loaded model, and a context in which a session can open it.

    A file is opened by onnxruntime itself once it passed the checks, so that a large one is not copied.
    """
    if isinstance(model, Model):
        return model, runnable(model)
    return load(model), nullcontext(str(model))
