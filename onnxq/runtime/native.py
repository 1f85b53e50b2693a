"""The native library: where it is, and what it can run.

A model stays correct without it: onnxruntime then runs the functions that the model carries for the same operators.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnxq.errors import SessionError
from onnxq.runtime.cuda.interface import declare

_LIBRARY_VARIABLE = "ONNXQ_NATIVE_LIBRARY"
# Activations of a row that share a scale, where they are rounded.
_INT8_RUN = 32
# Functions of the library that name its operators, one a line.
_ON_CPU, _ON_CUDA = ("MatMuls", "Linears", "Dequantizes"), ("CudaMatMuls", "CudaLinears", "CudaSwiGLUs", "CudaGathers")


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
