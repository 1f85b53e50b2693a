"""Give sessions the native kernels of onnxq's operators."""

import logging
from typing import TYPE_CHECKING

from onnxq.errors import SessionError
from onnxq.runtime.cuda import device
from onnxq.runtime.native import loaded_library, native_library

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

# Entries of session options that the library reads and writes; see custom_ops/ops/register.cc.
_DEQUANTIZE_ENTRY = "onnxq.native.dequantize"
_INT8_ENTRY = "onnxq.native.int8"
_CUDA_ENTRY = "onnxq.native.cuda"


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
    if reason := device.problem():
        logger.info("no GPU kernels: %s", reason)
        return False
    # It takes the names of operators from their functions, which take long to import.
    from onnxq.runtime.cuda.compiler import callback

    loaded_library().OnnxqSetCompiler(callback)
    return True
