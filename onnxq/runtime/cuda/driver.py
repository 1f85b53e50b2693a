"""Calls into libcuda through ctypes: CuPy compiles and loads the kernels, but has no launch attributes."""

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache

from onnxq.errors import SessionError
from onnxq.runtime.cuda.configuration import Launch, Map

_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID, cuda.h


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    )


# In the order of cuda.h: data type by size, swizzle, and promotion of L2 reads.
_ELEMENTS = {2: 1, 4: 2, 8: 4}
_SWIZZLE_128B, _PROMOTE_256B = 3, 3


@lru_cache(maxsize=4096)
def tensor_map(how: Map, address: int) -> ctypes.Array[ctypes.c_char]:
    """Encode a tensor map; the result holds it at its first 64-byte boundary (`aligned`).

    Raises:
        SessionError: CUDA refused it, for example because the address is not a multiple of 16.
    """
    memory = ctypes.create_string_buffer(192)
    rank = len(how.dims)
    code = _libcuda().cuTensorMapEncodeTiled(
        ctypes.c_void_p(aligned(memory)),
        _ELEMENTS[how.element],
        rank,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * rank)(*how.dims),
        (ctypes.c_uint64 * (rank - 1))(*how.strides),
        (ctypes.c_uint32 * rank)(*how.box),
        (ctypes.c_uint32 * rank)(*([1] * rank)),
        0,
        _SWIZZLE_128B if how.swizzle else 0,
        _PROMOTE_256B,
        0,
    )
    if code:
        raise SessionError(f"CUDA error {code} when encoding {how} at address {address:#x}")
    return memory


def aligned(memory: ctypes.Array[ctypes.c_char]) -> int:
    """First multiple of 64 in a buffer."""
    return -(-ctypes.addressof(memory) // 64) * 64


@cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def launch(
    function: int,
    how: Launch,
    maps: Sequence[ctypes.Array[ctypes.c_char]],
    pointers: Sequence[int],
    numbers: Sequence[int],
    stream: int,
    *,
    early: bool = True,
) -> None:
    """Launch a kernel whose parameters are tensor maps, then pointers, then 32-bit integers.

    Args:
        function: CUfunction handle.
        how: Grid, block and shared memory.
        maps: From `tensor_map`.
        pointers: Device addresses, 0 for none.
        numbers: Integers.
        stream: CUstream handle.
        early: Let it start, and load weights, while the kernel before it still runs (programmatic dependent launch).

    Raises:
        SessionError: CUDA refused the launch.
    """
    attribute = _Attribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION)
    attribute.value[0] = 1
    config = _Config(
        grid=how.grid,
        block=(how.block, 1, 1),
        shared_bytes=how.shared_bytes,
        stream=stream,
        attributes=ctypes.pointer(attribute),
        attribute_count=int(early),
    )
    values = [ctypes.c_void_p(p) for p in pointers] + [ctypes.c_int(n) for n in numbers]
    places = [aligned(map_) for map_ in maps] + [ctypes.addressof(value) for value in values]
    addresses = (ctypes.c_void_p * len(places))(*places)
    code = _libcuda().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), addresses, None)
    if code:
        raise SessionError(f"CUDA error {code} when launching a kernel with {how}")
