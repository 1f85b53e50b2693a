"""The native library: where it is, what it can run, and how a session gets its operators.

A model stays correct without it: onnxruntime then runs the functions that the model carries for the same operators.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import SessionError

if TYPE_CHECKING:
    import onnxruntime

_LIBRARY_VARIABLE = "ONNXQ_NATIVE_LIBRARY"
# Entries of session options that the library reads and writes; see custom_ops/ops/register.cc.
_DEQUANTIZE_ENTRY = "onnxq.native.dequantize"


@dataclass(frozen=True)
class NativeLibrary:
    """The library on this machine.

    Attributes:
        path: the file, or where it was looked for.
        problem: why it cannot be used, or None.
        operators: operators of the domain `onnxq` that it has kernels for.
        instruction_sets: which of its kernels this CPU can run, fastest first; a session takes the first, or the one
            that the environment variable ONNXQ_CPU_ISA names when it is made.
    """

    path: Path
    problem: str | None = None
    operators: frozenset[str] = frozenset()
    instruction_sets: tuple[str, ...] = ()


def native_library() -> NativeLibrary:
    """Look for the library: beside this package, or where the environment variable ONNXQ_NATIVE_LIBRARY says."""
    return _opened(os.environ.get(_LIBRARY_VARIABLE) or str(Path(__file__).parent / "_native" / "onnxq_native.so"))


def register(options: "onnxruntime.SessionOptions", *, dequantize: bool = False) -> bool:
    """Give the sessions made with `options` the native kernels of onnxq's operators. A second call changes nothing.

    Args:
        options: changed in place.
        dequantize: run `Dequantize<F>` in kernels as well. onnxruntime folds the function of that operator to a float
            weight at load; a kernel keeps the weight packed in memory, and decodes it in every run.

    Returns:
        Whether the kernels are there; False where the library is missing or cannot be loaded, and a session made with
        `options` then runs the functions in the model. `native_library().problem` says why.

    Raises:
        SessionError: the library and onnxruntime do not go together.
    """
    library = native_library()
    if library.problem:
        return False
    if dequantize:
        options.add_session_config_entry(_DEQUANTIZE_ENTRY, "1")
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:
        raise SessionError(f"onnxruntime does not take '{library.path}': {error}") from error
    return True


@cache
def _opened(name: str) -> NativeLibrary:
    path = Path(name)
    if not path.is_file():
        return NativeLibrary(path, f"there is no file '{path}'; installing onnxq with pip builds it")
    try:
        library = ctypes.CDLL(name)
        for function in (library.OnnxqOperators, library.OnnxqInstructionSets):
            function.restype = ctypes.c_char_p
        operators, sets = library.OnnxqOperators().decode(), library.OnnxqInstructionSets().decode()
    except (OSError, AttributeError) as error:
        return NativeLibrary(path, f"'{path}' cannot be loaded: {error}")
    return NativeLibrary(path, None, frozenset(operators.split()), tuple(sets.split(", ")))
