"""Answer the native library when a session asks for the kernels of a weight."""

import ctypes
import logging
import time
from typing import Any

from onnxq.formats import get_format
from onnxq.functions import operator_suffix
from onnxq.runtime.cuda.configuration import Operand
from onnxq.runtime.cuda.interface import MESSAGE_BYTES, Compiler, Kernels
from onnxq.runtime.cuda.kernels import kernels_for, lookup_for

logger = logging.getLogger(__name__)

# In the order of kFormats in custom_ops/cpu/format.h.
_FORMATS = ("fp6_e2m3", "fp6_e3m2", "fp4_e2m1", "int4", "uint4")
# By number of their ONNX type.
_TYPES = {1: "float32", 10: "float16", 16: "bfloat16"}


def operand_of(request: Any) -> Operand:
    """What kind of product a `Request` is about."""
    return Operand(
        _FORMATS[request.format],
        _TYPES[request.type],
        _TYPES[request.scale_type],
        request.group,
        bool(request.zero_points),
        bool(request.gated),
    )


def compile_kernels(request: Any, kernels: Any, message: int, size: int) -> int:
    """Fill in `kernels` and return 0; or 1, with a message. Called from C, where nothing may be raised."""
    try:
        asked = request.contents
        operand, began = operand_of(asked), time.monotonic()
        device = None if asked.device < 0 else asked.device
        made = lookup_for(operand, device) if asked.lookup else kernels_for(operand, asked.N, asked.K, device)
        ctypes.memmove(kernels, ctypes.byref(made), ctypes.sizeof(Kernels))
        name = operator_suffix(get_format(operand.fmt))
        seconds = time.monotonic() - began
        count = made.count or 1
        logger.info("%d GPU kernels for %s [%d, %d], %.1f s", count, name, asked.K, asked.N, seconds)
    except BaseException as error:  # noqa: BLE001
        text = f"{type(error).__name__}: {error}".encode()[: min(size, MESSAGE_BYTES) - 1]
        ctypes.memmove(message, text + b"\0", len(text) + 1)
        return 1
    return 0


# The library keeps its address for good.
callback = Compiler(compile_kernels)
