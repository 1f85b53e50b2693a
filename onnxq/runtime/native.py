"""The native library: where it is, what it can run, and how a session gets its operators.

A model stays correct without it: onnxruntime then runs the functions that the model carries for the same operators.
"""

import ctypes
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxq.errors import SessionError
from onnxq.runtime.cuda.interface import declare

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

_LIBRARY_VARIABLE = "ONNXQ_NATIVE_LIBRARY"
# Entries of session options that the library reads and writes; see custom_ops/ops/register.cc.
_DEQUANTIZE_ENTRY = "onnxq.native.dequantize"
_INT8_ENTRY = "onnxq.native.int8"
_CUDA_ENTRY = "onnxq.native.cuda"
# Activations of a row that share a scale, where they are rounded.
_INT8_RUN = 32
# Functions of the library that name its operators, one a line.
_ON_CPU, _ON_CUDA = ("MatMuls", "Linears", "Dequantizes"), ("CudaMatMuls", "CudaLinears", "CudaSwiGLUs")


@dataclass(frozen=True)
class NativeLibrary:
    """The library on this machine.

    Attributes:
        path: the file, or where it was looked for.
        problem: why it cannot be used, or None.
        operators: operators of the domain `onnxq` that it has kernels for on the CPU.
        cuda_operators: those that it has for a session on CUDA.
        instruction_sets: which of its kernels this CPU can run, fastest first; a session takes the first, or the one
            that the environment variable ONNXQ_CPU_ISA names when it is made.
    """

    path: Path
    problem: str | None = None
    operators: frozenset[str] = frozenset()
    cuda_operators: frozenset[str] = frozenset()
    instruction_sets: tuple[str, ...] = ()


def native_library() -> NativeLibrary:
    """Look for the library: beside this package, or where the environment variable ONNXQ_NATIVE_LIBRARY says."""
    return _opened(_place())[0]


def loaded_library() -> ctypes.CDLL:
    """The library itself.

    Raises:
        SessionError: it cannot be used.
    """
    found, library = _opened(_place())
    if library is None:
        raise SessionError(str(found.problem))
    return library


def rounds_activations(operator: str, k: int, block: int) -> bool:
    """Whether a native product of a session at accuracy level 4 rounds activations to int8, with this CPU's kernels.

    A row that is alone is never rounded: there reading the weight takes all the time.

    Args:
        operator: `MatMul<F>` or `Linear<F>`.
        k: rows of the weight.
        block: rows that share a scale.
    """
    library = _opened(_place())[1]
    if library is None or (block % _INT8_RUN and block < k):
        return False
    name = operator.removeprefix("MatMul").removeprefix("Linear").removesuffix("Asymmetric")
    return bool(library.OnnxqRounds(name.encode()))


def register(
    options: "onnxruntime.SessionOptions", *, dequantize: bool = False, int8: bool = False, cuda: bool = False
) -> bool:
    """Give the sessions made with `options` the native kernels of onnxq's operators. A second call changes nothing.

    Args:
        options: changed in place.
        dequantize: run `Dequantize<F>` in kernels as well. onnxruntime folds the function of that operator to a float
            weight at load; a kernel keeps the weight packed in memory, and decodes it in every run.
        int8: let products on the CPU round activations to int8 where that is faster; `rounds_activations` says which.
        cuda: the session will run on CUDA: give it the operators of the GPU, `MatMul<F>Tiled`, instead of those of the
            CPU. Their kernels are compiled when the session is made, and kept on disk by CuPy.

    Returns:
        Whether the kernels are there. If not, a session made with `options` runs the functions in the model;
        `native_library().problem` says why, or with `cuda` `onnxq.runtime.cuda.device.problem()`.

    Raises:
        SessionError: the library and onnxruntime do not go together.
    """
    library = native_library()
    if library.problem or (cuda and not _compiles_for_cuda()):
        return False
    if cuda:
        options.add_session_config_entry(_CUDA_ENTRY, "1")
    if dequantize:
        options.add_session_config_entry(_DEQUANTIZE_ENTRY, "1")
    if int8:
        options.add_session_config_entry(_INT8_ENTRY, "1")
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:
        raise SessionError(f"onnxruntime does not take '{library.path}': {error}") from error
    return True


def _compiles_for_cuda() -> bool:
    """Let the library ask this process for kernels, if that can give any."""
    from onnxq.runtime.cuda import device

    if reason := device.problem():
        logger.info("no GPU kernels: %s", reason)
        return False
    from onnxq.runtime.cuda.compiler import callback

    loaded_library().OnnxqSetCompiler(callback)
    return True


def _place() -> str:
    return os.environ.get(_LIBRARY_VARIABLE) or str(Path(__file__).parent / "_native" / "onnxq_native.so")


@cache
def _opened(name: str) -> tuple[NativeLibrary, ctypes.CDLL | None]:
    path = Path(name)
    if not path.is_file():
        return NativeLibrary(path, f"there is no file '{path}'; installing onnxq with pip builds it"), None
    try:
        library = ctypes.CDLL(name)
        declare(library)
        on_cpu, on_cuda = (_operators(library, families) for families in (_ON_CPU, _ON_CUDA))
        sets = tuple(_text(library.OnnxqInstructionSets).split(", "))
    except (OSError, AttributeError) as error:
        return NativeLibrary(path, f"'{path}' cannot be loaded: {error}"), None
    return NativeLibrary(path, None, on_cpu, on_cuda, sets), library


def _operators(library: ctypes.CDLL, families: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name for each in families for name in _text(getattr(library, f"Onnxq{each}")).split())


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return str(function().decode())
