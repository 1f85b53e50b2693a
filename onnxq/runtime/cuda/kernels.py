"""Compile the CUDA kernels for the device at hand with CuPy, and run them on device pointers."""

from functools import cache
from typing import Any

from onnxq.errors import MissingExtraError, SessionError
from onnxq.runtime.cuda.configuration import Configuration, Launch, Operand, tensor_maps
from onnxq.runtime.cuda.driver import launch, tensor_map
from onnxq.runtime.cuda.sources import source


def function(operand: Operand, configuration: Configuration) -> int:
    """CUfunction handle of a matmul, compiled for the current device when first asked for.

    CuPy keeps the binary on disk, so a second process compiles nothing.

    Raises:
        MissingExtraError: CuPy is not installed.
        SessionError: the device is not of compute capability 9.0.
    """
    macros = operand.macros | configuration.macros
    return _load(configuration.kernel, tuple(macros.items()), configuration.shared_bytes(operand), _device())


def dequantize_function(operand: Operand) -> int:
    """CUfunction handle of the kernel that writes the weight out; as `function`."""
    return _load("dequantize", (*operand.macros.items(), ("SPLIT", 1)), 0, _device())


def matmul(
    operand: Operand,
    configuration: Configuration,
    pointers: tuple[int, int, int, int, int],
    shape: tuple[int, int, int],
    stream: int,
    *,
    early: bool = True,
) -> None:
    """Put y = x @ W + bias on a stream.

    Args:
        operand: Types and group size.
        configuration: The kernel and its numbers.
        pointers: Device addresses of x [M, K], packed W, scale [groups, N], bias [N] or 0, y [M, N].
        shape: M, N, K.
        stream: CUstream handle.
        early: See `driver.launch`.
    """
    M, N, K = shape
    if M:
        x, packed, scale, bias, y = pointers
        on_x, on_packed, on_scale = tensor_maps(operand, configuration, M, N, K)
        maps = [tensor_map(on_x, x), tensor_map(on_packed, packed)]
        maps.append(tensor_map(on_scale, scale) if on_scale else maps[0])
        how = configuration.launch(operand, M, N)
        launch(function(operand, configuration), how, maps, (packed, scale, bias, y), (M, N, K), stream, early=early)


def dequantize(operand: Operand, pointers: tuple[int, int, int], shape: tuple[int, int], stream: int) -> None:
    """Put "weight [N, K] = values of W times scales" on a stream.

    Args:
        operand: Types and group size.
        pointers: Device addresses of packed W, scale [groups, N], weight.
        shape: N, K.
        stream: CUstream handle.
    """
    N, K = shape
    how = Launch((-(-N // 16 * (K // 128) // 8), 1, 1), 256, 0)
    launch(dequantize_function(operand), how, (), pointers, (N, K), stream)


_loaded: list[Any] = []  # CuPy unloads a module that nobody holds


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError.of("cupy-cuda13x", "gpu", "compiling CUDA kernels") from error
    return cupy


def _device() -> int:
    return int(_cupy().cuda.runtime.getDevice())


@cache
def _load(kernel: str, macros: tuple[tuple[str, int], ...], shared_bytes: int, device: int) -> int:
    cupy = _cupy()
    capability = str(cupy.cuda.Device(device).compute_capability)
    if capability != "90":
        raise SessionError(
            f"the CUDA kernels need a GPU of compute capability 9.0 (H100, H200); device {device} has "
            f"{capability[:-1]}.{capability[-1]}"
        )
    options = ("-std=c++17", "-arch=sm_90a", *(f"-D{name}={value}" for name, value in macros))
    module = cupy.RawModule(code=source(kernel), options=options)
    compiled = module.get_function(kernel)
    if shared_bytes > 48 * 1024:
        compiled.max_dynamic_shared_size_bytes = shared_bytes
    # All of the memory that L1 and shared memory have in common: blocks of the next kernel must fit beside this one's.
    compiled.preferred_shared_memory_carveout = 100
    _loaded.append(module)
    return int(compiled.kernel.ptr)
