"""Where arrays are computed: numpy on processors, CuPy on a GPU."""

from typing import Any

import numpy as np

from onnxq.errors import MissingExtraError, UsageError

CPU_CHUNK = 1 << 16
"""Elements that stay in the second-level cache of a core while a chain of array operations passes over them."""
GPU_CHUNK = 1 << 24
"""Elements that keep a GPU busy for longer than it takes to start a kernel."""


def get_module(device: str) -> Any:
    """The array module of a device, `cpu` or `cuda`.

    Raises:
        UsageError: There is no such device.
        MissingExtraError: CuPy is not installed.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise UsageError(f"no device '{device}': cpu or cuda")
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError.of("cupy-cuda13x", "gpu", "device cuda") from error
    return cupy


def module_of(array: Any) -> Any:
    """The module that made an array."""
    if isinstance(array, np.ndarray | np.generic):
        return np
    import cupy

    return cupy


def to_host(array: Any) -> np.ndarray:
    """The same numbers as a numpy array."""
    host: np.ndarray = array if isinstance(array, np.ndarray) else array.get()
    return host


def chunk_size(array: Any) -> int:
    """How many elements of an array are best worked on at a time."""
    return CPU_CHUNK if isinstance(array, np.ndarray) else GPU_CHUNK
