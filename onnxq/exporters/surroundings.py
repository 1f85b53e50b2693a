"""What exporting happens in: without a network, and without what the libraries say to their own developers."""

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import Any

from onnxq.errors import MissingExtraError

logger = logging.getLogger(__name__)

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def require(*packages: str) -> None:
    """Raise a MissingExtraError that names the first package that is not installed."""
    for package in packages:
        if not is_installed(package):
            raise MissingExtraError.of(package, "export", "exporting a model")


def is_installed(package: str) -> bool:
    """Whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def offline() -> Iterator[None]:
    """No library of Hugging Face asks its hub while this lasts."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    # Read from the environment once, when the module was first imported.
    constants: Any = sys.modules.get("huggingface_hub.constants", SimpleNamespace(HF_HUB_OFFLINE=False))
    asking = constants.HF_HUB_OFFLINE
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = asking
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no prints and no log lines below errors while this lasts.

    Exporters warn about what they trace, and print whole graphs where they fail; what they printed is a log line.
    """
    before, printed = logging.root.manager.disable, StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if printed.getvalue():
            logger.debug("%s", printed.getvalue())


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers while this lasts."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]
