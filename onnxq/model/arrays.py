"""Arrays, and a few words about them, in one safetensors file."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from onnxq.errors import OutputError, reason
from onnxq.model.replacing import replacing


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], words: Mapping[str, str], what: str, *, lasting: bool = True
) -> None:
    """Write a file.

    Args:
        path: The file; one that stands there is replaced.
        arrays: Of types that safetensors knows, by name.
        words: What is to be known about them.
        what: How an error calls them.
        lasting: The file appears whole or not at all, and only when it is on the disk; a temporary one need not.

    Raises:
        OutputError: It cannot be written.
    """
    # The memory of an array is written as it lies.
    plain = {name: np.asarray(each, order="C") for name, each in arrays.items()}
    try:
        with replacing(path) if lasting else nullcontext(path) as partial:
            save_file(plain, partial, dict(words))
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {what}: {_cause(error)}") from error


def _cause(error: Exception) -> str:
    """What the system says, which safetensors wraps in a sentence of its own."""
    found = re.search(r"I/O error: (.+?) \(os error", str(error))
    return found[1] if found else reason(error)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the words of a file.

    Raises:
        ValueError: It is not there, or damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read '{path}': {error}") from error
