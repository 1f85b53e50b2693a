"""Compile the CUDA kernels for a device with CuPy, and run them on device pointers."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

from onnxq.errors import SessionError
from onnxq.runtime.cuda.configuration import Configuration, Operand
from onnxq.runtime.cuda.device import cupy, problem
from onnxq.runtime.cuda.interface import Kernel, Kernels, Lookup, Rows, Weight, look_up, multiply
from onnxq.runtime.cuda.sources import source
from onnxq.runtime.cuda.table import MAX_ROWS, plan
from onnxq.runtime.native import loaded_library

logger = logging.getLogger(__name__)

_WORKERS = 8


class Pointers(NamedTuple):
    """Device addresses: x [M, K], packed W, scale [groups, N], y [M, N or N / 2], and 0 or zero points and bias [N]."""

    x: int
    packed: int
    scale: int
    y: int
    zero: int = 0
    bias: int = 0


def function(operand: Operand, configuration: Configuration, device: int | None = None) -> int:
    """CUfunction handle of a product kernel, compiled when first asked for; by default for the current device.

    CuPy keeps the binary on disk, so a second process compiles nothing.

    Raises:
        MissingExtraError: CuPy is not installed.
        SessionError: the device is not of compute capability 9.0, or the kernel does not compile.
    """
    macros = operand.macros | configuration.macros
    return _load(
        configuration.kernel, configuration.kernel, tuple(macros.items()), configuration.shared_bytes(operand), device
    )


def kernels_for(operand: Operand, N: int, K: int, device: int | None = None) -> Kernels:
    """Compile all that x @ W needs, for any number of rows of x; errors as `function`."""
    chosen = plan(operand, N, K)
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        functions = list(pool.map(lambda each: function(operand, each[1], device), chosen))
    made = Kernels(count=len(chosen))
    for at, (handle, (most, configuration)) in enumerate(zip(functions, chosen, strict=True)):
        made.each[at] = Kernel.of(handle, most, operand, configuration)
        logger.debug("%s [%d, %d], up to %d rows: %s", operand, K, N, most, configuration)
    if operand.dtype == "float32":
        made.split_float32 = _load("pieces", "split_float32", (), 0, device)
        made.sum_pieces = _load("pieces", "gate_pieces" if operand.gated else "sum_pieces", (), 0, device)
    return made


def lookup_for(operand: Operand, device: int | None = None) -> Kernels:
    """Compile what looks columns of a weight up; errors as `function`."""
    return Kernels(look_up=_load("lookup", "look_up", tuple(operand.macros.items()), 0, device))


def matmul(
    operand: Operand,
    configuration: Configuration,
    pointers: Pointers,
    shape: tuple[int, int, int],
    stream: int,
    *,
    early: bool = True,
) -> None:
    """Put y = x @ W + bias on a stream, without onnxruntime.

    Args:
        operand: What kind of weight; float32 stands for bfloat16 x and float32 y here.
        configuration: The kernel and its numbers.
        pointers: Where everything is.
        shape: M, N, K.
        stream: CUstream handle.
        early: Let it start, and load weights, while the kernel before it still runs (programmatic dependent launch).

    Raises:
        SessionError: the native library is missing, or CUDA refused the launch.
    """
    M, N, K = shape
    if M:
        kernel = Kernel.of(function(operand, configuration), MAX_ROWS, operand, configuration)
        rows = Rows(pointers.x, pointers.bias, pointers.y, M, stream, early)
        multiply(loaded_library(), kernel, _weight(operand, pointers, N, K), rows)


def gather(operand: Operand, pointers: Pointers, shape: tuple[int, int, int], columns: int, stream: int) -> None:
    """Put rows y[i] = W[:, x[i]] on a stream, without onnxruntime.

    Args:
        operand: What kind of weight; its `dtype` is that of y.
        pointers: Where everything is; x are int64 indices.
        shape: Number of indices, N in whole units, K.
        columns: Of W that are no filling.
        stream: CUstream handle.

    Raises:
        SessionError: the native library is missing, or CUDA refused the launch.
    """
    count, N, K = shape
    if count:
        lookup = Lookup(pointers.x, pointers.y, count, columns, stream, True)
        look_up(loaded_library(), lookup_for(operand).look_up, _weight(operand, pointers, N, K), lookup)


def _weight(operand: Operand, pointers: Pointers, N: int, K: int) -> Weight:
    numbers = (operand.unit_bytes, operand.scale_bytes, operand.group, operand.zero)
    return Weight(K, N, *numbers, pointers.packed, pointers.scale, pointers.zero)


_loaded: list[Any] = []  # CuPy unloads a module that nobody holds


def _load(file: str, kernel: str, macros: tuple[tuple[str, int], ...], shared_bytes: int, device: int | None) -> int:
    here = int(cupy().cuda.runtime.getDevice()) if device is None else device
    return _compiled(file, kernel, macros, shared_bytes, here)


@cache
def _compiled(file: str, kernel: str, macros: tuple[tuple[str, int], ...], shared_bytes: int, device: int) -> int:
    if reason := problem(device):
        raise SessionError(reason)
    options = ("-std=c++17", "-arch=sm_90a", *(f"-D{name}={value}" for name, value in macros))
    with cupy().cuda.Device(device):
        module = cupy().RawModule(code=source(file), options=options)
        try:
            compiled = module.get_function(kernel)
        except cupy().cuda.compiler.CompileException as error:
            raise SessionError(f"the CUDA kernel '{kernel}' does not compile here: {str(error)[-300:]}") from error
        if shared_bytes > 48 * 1024:
            compiled.max_dynamic_shared_size_bytes = shared_bytes
        if shared_bytes:
            # All that L1 and shared memory have in common: blocks of the next kernel must fit beside this one's.
            compiled.preferred_shared_memory_carveout = 100
        _loaded.append(module)
        return int(compiled.kernel.ptr)
