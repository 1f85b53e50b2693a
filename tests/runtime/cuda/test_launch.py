"""What the library tells CUDA, seen by a library in the place of libcuda: every map and launch, and every failure."""

import ctypes
import itertools
import math
import subprocess
import sys
from pathlib import Path

import pytest

from onnxq.formats.tiled import TILED_FORMATS
from onnxq.runtime.cuda.configuration import Operand, Stream, Tile
from onnxq.runtime.cuda.interface import Kernel, Rows, Weight, multiply
from onnxq.runtime.cuda.table import MAX_ROWS, choose

FAKE = r"""
#include <stdint.h>
#include <string.h>
int maps, fail_at = -1, bytes[8], rank[8], swizzle[8], early;
uint64_t dims[8][3], strides[8][2];
uint32_t box[8][3], grid[3], block[3], shared;
void *address[8], *stream;
int cuTensorMapEncodeTiled(void *map, int type, uint32_t r, void *at, const uint64_t *d, const uint64_t *s,
                           const uint32_t *b, const uint32_t *steps, int interleave, int sw, int promote, int fill) {
  static const int sizes[] = {1, 2, 4, 4, 8};
  if (maps == fail_at) return 1;
  bytes[maps] = sizes[type]; rank[maps] = r; swizzle[maps] = sw; address[maps] = at;
  memcpy(dims[maps], d, r * 8); memcpy(strides[maps], s, (r - 1) * 8); memcpy(box[maps], b, r * 4);
  maps++;
  return steps[0] == 1 && interleave == 0 && fill == 0 && ((uintptr_t)map & 63) == 0 ? 0 : 1;
}
struct attribute { int id; char pad[4]; int value[16]; };
struct config { uint32_t grid[3], block[3], shared; void *stream; struct attribute *attributes; uint32_t count; };
int cuLaunchKernelEx(const struct config *c, void *function, void **parameters, void **extra) {
  memcpy(grid, c->grid, 12); memcpy(block, c->block, 12); shared = c->shared; stream = c->stream;
  early = c->count && c->attributes->id == 6 && c->attributes->value[0];
  return function ? 0 : 400;
}
int cuGetErrorName(int code, const char **name) {
  *name = code == 1 ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_INVALID_HANDLE";
  return 0;
}
"""
SHAPES = [(16, 128), (4096, 4096), (151936, 1024), (1024, 65536)]
ROWS = [1, 2, 7, 8, 9, 17, 64, 65, 512, 1024, 20000]


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """The fake, loaded first, so that the library finds it under the name libcuda.so.1."""
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("here is a real libcuda")
    except OSError:
        folder = tmp_path_factory.mktemp("cuda")
    (folder / "fake.c").write_text(FAKE)
    flags = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(["cc", str(folder / "fake.c"), *flags], check=True)
    return ctypes.CDLL(str(folder / "libcuda.so.1"))


@pytest.fixture
def library(cuda):
    """The native library, with its own memory of what it found."""
    from onnxq.runtime.native import loaded_library

    return loaded_library()


def run(cuda, library, operand, configuration, M, N, K, *, function=1, early=1):
    ctypes.c_int.in_dll(cuda, "maps").value = 0
    kernel = Kernel.of(function, MAX_ROWS, operand, configuration)
    weight = Weight(K, N, operand.unit_bytes, operand.scale_bytes, operand.group, operand.zero, 0x1000, 0x2000, 0x3000)
    multiply(library, kernel, weight, Rows(0x4000, 0, 0x5000, M, 0x77, early))


def array(cuda, kind, name, *shape):
    for size in reversed(shape):
        kind = kind * size
    return kind.in_dll(cuda, name)


@pytest.mark.parametrize("group", [0, 16, 32, 64, 128, 256, 4096])
def test_every_map_is_one_that_cuda_takes(cuda, library, group):
    for fmt, zero in [*((fmt, False) for fmt in TILED_FORMATS), ("int4", True)]:
        operand = Operand(fmt, group=group, zero=zero)
        for M, (N, K) in itertools.product(ROWS, SHAPES):
            chosen = choose(operand, M, N, K)
            run(cuda, library, operand, chosen, M, N, K)
            maps = ctypes.c_int.in_dll(cuda, "maps").value
            assert maps == 2 + (group > 0) + (group > 0 and zero)
            boxes, strides = array(cuda, ctypes.c_uint32, "box", 8, 3), array(cuda, ctypes.c_uint64, "strides", 8, 2)
            ranks, sizes = array(cuda, ctypes.c_int, "rank", 8), array(cuda, ctypes.c_int, "bytes", 8)
            for at in range(maps):
                assert all(0 < size <= 256 for size in boxes[at][: ranks[at]])
                assert all(stride % 16 == 0 for stride in strides[at][: ranks[at] - 1])
                assert boxes[at][0] * sizes[at] % 16 == 0
            # A stage has room for what its copies bring.
            stage = sum(sizes[at] * math.prod(boxes[at][: ranks[at]]) for at in range(2))
            assert stage * chosen.stages <= chosen.shared_bytes(operand)
            grid = list(array(cuda, ctypes.c_uint32, "grid", 3))
            assert grid[0] * grid[1] == -(-N // chosen.rows) * -(-M // chosen.columns) * chosen.split
            assert max(grid[1:]) <= 65535


def test_a_product_is_told_as_it_is(cuda, library):
    operand = Operand("fp6_e3m2", group=128)
    run(cuda, library, operand, Stream(2, 1, 2, 4, 3, 1, x_rows=16), 13, 208, 1152)
    assert array(cuda, ctypes.c_int, "swizzle", 8)[:3] == [3, 0, 0]
    assert array(cuda, ctypes.c_void_p, "address", 8)[:3] == [0x4000, 0x1000, 0x2000]
    assert [list(each) for each in array(cuda, ctypes.c_uint64, "dims", 8, 3)][:2] == [[64, 13, 18], [192, 9, 13]]
    assert list(array(cuda, ctypes.c_uint64, "dims", 8, 3)[2])[:2] == [208, 9]
    assert [list(each) for each in array(cuda, ctypes.c_uint32, "box", 8, 3)][:2] == [[64, 13, 8], [192, 4, 2]]
    assert list(array(cuda, ctypes.c_uint32, "box", 8, 3)[2])[:2] == [32, 4]
    assert list(array(cuda, ctypes.c_uint32, "grid", 3)) == [7, 1, 1]
    assert list(array(cuda, ctypes.c_uint32, "block", 3)) == [288, 1, 1]
    assert ctypes.c_void_p.in_dll(cuda, "stream").value == 0x77
    assert ctypes.c_int.in_dll(cuda, "early").value == 1
    run(cuda, library, operand, Stream(2, 7, 2, 4, 2, 1), 13, 208, 1152)  # a whole warpgroup copies
    assert list(array(cuda, ctypes.c_uint32, "block", 3)) == [384, 1, 1]
    run(cuda, library, operand, Tile(64, 1, 2, 3, 2), 130, 208, 1152, early=0)
    assert list(array(cuda, ctypes.c_uint32, "grid", 3)) == [2 * 3 * 2, 1, 1]
    assert ctypes.c_int.in_dll(cuda, "early").value == 0


@pytest.mark.parametrize(("at", "what"), [(0, "x at 0x4000"), (1, "the weight at 0x1000"), (2, "the scales at 0x2000")])
def test_a_refused_map_is_named(cuda, library, at, what):
    from onnxq.errors import SessionError

    ctypes.c_int.in_dll(cuda, "fail_at").value = at
    try:
        with pytest.raises(SessionError, match=f"cuTensorMapEncodeTiled for {what}: CUDA_ERROR_INVALID_VALUE"):
            run(cuda, library, Operand("int4", group=32), Stream(1, 1, 1, 4, 2, 1), 1, 16, 512)
    finally:
        ctypes.c_int.in_dll(cuda, "fail_at").value = -1


def test_a_refused_launch_is_named(cuda, library):
    from onnxq.errors import SessionError

    with pytest.raises(SessionError, match=r"cuLaunchKernelEx of a product, grid 1 x 1, .*: CUDA_ERROR_INVALID_HANDLE"):
        run(cuda, library, Operand("int4"), Stream(1, 1, 1, 4, 2, 1), 1, 16, 512, function=0)


def test_more_rows_than_a_launch_has_are_refused(cuda, library):
    from onnxq.errors import SessionError

    with pytest.raises(SessionError, match="3000000000 rows of x are too many"):
        run(cuda, library, Operand("int4"), Tile(64, 1, 2, 3, 2), 3_000_000_000, 16, 512)


def test_without_libcuda_that_is_said(tmp_path):
    code = """
import onnxq.runtime.native as native
from onnxq.runtime.cuda.configuration import Operand, Stream
from onnxq.runtime.cuda.interface import Kernel, Rows, Weight, multiply
operand, how = Operand("int4"), Stream(1, 1, 1, 4, 2, 1)
try:
    multiply(native.loaded_library(), Kernel.of(1, 1, operand, how), Weight(128, 16), Rows(M=1))
except Exception as error:
    print(error)
"""
    # Not from within a checkout, whose package has no library.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    if Path("/usr/local/nvidia").exists() or "CUDA_ERROR" in done.stdout:
        pytest.skip("here is a real libcuda")
    assert "libcuda.so.1 cannot be loaded" in done.stdout
