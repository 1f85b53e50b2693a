"""The GPU at hand, as CuPy sees it."""

from functools import cache
from typing import Any

from onnxq.errors import MissingExtraError


def cupy() -> Any:
    """The module CuPy.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError.of("cupy-cuda13x", "gpu", "compiling CUDA kernels") from error
    return cupy


@cache
def devices() -> tuple[str, ...]:
    """Names of all GPUs, with their compute capability; empty where CUDA finds none."""
    runtime = cupy().cuda.runtime
    try:
        found = [runtime.getDeviceProperties(number) for number in range(runtime.getDeviceCount())]
    except runtime.CUDARuntimeError:
        return ()
    return tuple(f"{each['name'].decode()} (compute capability {each['major']}.{each['minor']})" for each in found)


def problem(device: int | None = None) -> str | None:
    """Why the kernels cannot run on a GPU (by default on any), or None."""
    try:
        found = devices()
    except MissingExtraError as error:
        return str(error)
    asked = found if device is None else found[device : device + 1]
    if not asked:
        return "CUDA finds no GPU here"
    if not any(name.endswith(" 9.0)") for name in asked):
        return f"the kernels need a GPU of compute capability 9.0 (H100, H200); here is {', '.join(asked)}"
    return None
