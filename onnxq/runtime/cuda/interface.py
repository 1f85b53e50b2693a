"""What Python and the native library tell each other about GPU kernels (gpu/product.h, ops/tiled.h)."""

import ctypes
from ctypes import c_char_p, c_int32, c_int64, c_size_t, c_void_p

from onnxq.errors import SessionError
from onnxq.runtime.cuda.configuration import Configuration, Operand, Tile

MESSAGE_BYTES = 320
_MAX_KERNELS = 24


class Kernel(ctypes.Structure):
    """A compiled product kernel with the numbers that it was compiled for."""

    _fields_ = (
        ("function", c_void_p),
        ("max_rows", c_int64),
        *((name, c_int32) for name in ("is_tile", "rows", "columns", "split", "along_k", "block", "shared_bytes")),
    )

    @classmethod
    def of(cls, function: int, max_rows: int, operand: Operand, configuration: Configuration) -> "Kernel":
        """From a CUfunction handle and the most rows of x that it is meant for."""
        return cls(
            function,
            max_rows,
            isinstance(configuration, Tile),
            configuration.rows,
            configuration.columns,
            configuration.split,
            configuration.units_along_k,
            configuration.block,
            configuration.shared_bytes(operand),
        )


class Kernels(ctypes.Structure):
    """All kernels of one weight, by growing rows; two more for float32 activations; or one that looks columns up."""

    _fields_ = (
        ("each", Kernel * _MAX_KERNELS),
        ("count", c_int32),
        ("split_float32", c_void_p),
        ("sum_pieces", c_void_p),
        ("look_up", c_void_p),
    )


class Request(ctypes.Structure):
    """A weight for which the library wants kernels."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in ("device", "format", "type", "scale_type", "group", "zero_points", "gated", "lookup")
        ),
        ("K", c_int64),
        ("N", c_int64),
    )


class Weight(ctypes.Structure):
    """A packed weight on the GPU."""

    _fields_ = (
        ("K", c_int64),
        ("N", c_int64),
        *((name, c_int32) for name in ("unit_bytes", "scale_bytes", "group", "zero_points")),
        *((name, c_void_p) for name in ("packed", "scale", "zero")),
    )


class Rows(ctypes.Structure):
    """Activations, results and the stream."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "bias", "y")),
        ("M", c_int64),
        ("stream", c_void_p),
        ("early", c_int32),
    )


class Lookup(ctypes.Structure):
    """Indices of columns, and where these go."""

    _fields_ = (
        ("indices", c_void_p),
        ("y", c_void_p),
        ("count", c_int64),
        ("columns", c_int64),
        ("stream", c_void_p),
        ("wide", c_int32),
    )


Compiler = ctypes.CFUNCTYPE(c_int32, ctypes.POINTER(Request), ctypes.POINTER(Kernels), c_void_p, c_size_t)


def declare(library: ctypes.CDLL) -> None:
    """Say what the functions take.

    Raises:
        AttributeError: The library is older than this package.
    """
    library.OnnxqSetCompiler.argtypes = (Compiler,)
    library.OnnxqSetCompiler.restype = None
    pointers = (ctypes.POINTER(each) for each in (Kernel, Weight, Rows))
    library.OnnxqMultiply.argtypes = (*pointers, c_char_p, c_size_t)
    library.OnnxqLookUp.argtypes = (c_void_p, ctypes.POINTER(Weight), ctypes.POINTER(Lookup), c_char_p, c_size_t)


def multiply(library: ctypes.CDLL, kernel: Kernel, weight: Weight, rows: Rows) -> None:
    """Put one product on a stream.

    Raises:
        SessionError: CUDA refused it.
    """
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if not library.OnnxqMultiply(kernel, weight, rows, message, MESSAGE_BYTES):
        raise SessionError(message.value.decode())


def look_up(library: ctypes.CDLL, function: int, weight: Weight, lookup: Lookup) -> None:
    """Look columns up on a stream; errors as `multiply`."""
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if not library.OnnxqLookUp(function, weight, lookup, message, MESSAGE_BYTES):
        raise SessionError(message.value.decode())
