import itertools

import numpy as np
import pytest

from onnxq.formats import get_format
from onnxq.formats.tiled import unpack_tiled
from onnxq.runtime.cuda import kernels
from onnxq.runtime.cuda.configuration import Operand, Stream, Tile

pytestmark = pytest.mark.gpu
FORMATS = ["fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int4", "uint4"]


@pytest.fixture(scope="module")
def cp():
    cupy = pytest.importorskip("cupy")
    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            pytest.skip("no GPU")
    except cupy.cuda.runtime.CUDARuntimeError:
        pytest.skip("no GPU")
    return cupy


def bfloat16(cp, x):
    """float32 to the bits of bfloat16, and what they mean."""
    bits = x.astype(cp.float32).view(cp.uint32)
    bits = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    return bits.astype(cp.uint16), (bits << 16).view(cp.float32)


def rounded(cp, x, kind):
    """Numbers as they are stored, and what they mean in float64."""
    stored, meant = bfloat16(cp, x) if kind == "bfloat16" else (x.astype(kind),) * 2
    return stored, meant.astype(cp.float64)


def case(cp, operand, M, N, K):
    """Arrays on the GPU by name, x and bias as they mean, and the weight in float64."""
    rng = cp.random.default_rng(M * 7919 + N * 31 + K)
    fmt = get_format(operand.fmt)
    groups, kind = (
        -(-K // operand.group) if operand.group else 1,
        "bfloat16" if operand.dtype == "float32" else operand.dtype,
    )
    packed = rng.integers(0, 256, (N // 16, -(-K // 128), 256 * fmt.bits), cp.uint8)
    zero = rng.integers(0, 1 << fmt.bits, (groups, N), cp.uint8)
    scale, scales = rounded(cp, rng.random((groups, N), cp.float32) + 0.5, operand.scale)
    x, activations = rounded(cp, rng.standard_normal((M, K), cp.float32) * 0.05, kind)
    bias, biases = rounded(cp, rng.standard_normal(N, cp.float32), kind)
    values, rows = cp.asarray(fmt.values.astype(np.float64)), cp.arange(K) // (operand.group or K)
    weight = values[cp.asarray(unpack_tiled(packed.get(), fmt)[:K])]
    if operand.zero:
        weight -= values[zero][rows]
    given = {"x": x, "packed": packed, "scale": scale, "bias": bias, "zero": zero}
    return given, activations, biases, weight * scales[rows]


def check(cp, operand, configuration, M, N, K, with_bias=False):
    given, x, bias, weight = case(cp, operand, M, N, K)
    expected = x @ weight + (bias if with_bias else 0)
    if operand.gates_itself:
        gate, up = expected.reshape(M, N // 32, 2, 16).transpose(2, 0, 1, 3).reshape(2, M, N // 2)
        expected = gate / (1 + cp.exp(-gate)) * up
    width = 4 if operand.dtype == "float32" else 2
    poison = cp.full((M + 1, expected.shape[1] * width // 2), 0x7FC1, cp.uint16)  # NaN, and a row that must stay
    address = {name: array.data.ptr for name, array in given.items() if name != "bias" or with_bias}
    if not operand.zero:
        del address["zero"]
    pointers = kernels.Pointers(**address, y=poison.data.ptr)
    kernels.matmul(operand, configuration, pointers, (M, N, K), cp.cuda.get_current_stream().ptr)
    cp.cuda.get_current_stream().synchronize()
    assert (poison[M] == 0x7FC1).all()
    if operand.dtype == "bfloat16":
        got = (poison[:M].astype(cp.uint32) << 16).view(cp.float32)
    else:
        got = poison[:M].view(operand.dtype)
    error = float(cp.linalg.norm(got.astype(cp.float64) - expected) / cp.linalg.norm(expected))
    assert error < {"bfloat16": 5e-3, "float16": 4e-4, "float32": 2e-6}[operand.dtype], configuration


@pytest.mark.parametrize(
    ("fmt", "dtype", "scale", "group"),
    [
        *itertools.product(FORMATS, ["float16", "bfloat16"], ["float32"], [0, 128]),
        *itertools.product(["fp6_e3m2", "fp4_e2m1", "int4"], ["float16"], ["float16", "bfloat16"], [16, 32, 64, 256]),
    ],
)
def test_every_kind_of_operand_gives_the_product(cp, fmt, dtype, scale, group):
    operand = Operand(fmt, dtype, scale, group)
    check(cp, operand, Stream(1, 2, 2, 2, 3, 1, x_rows=5), 5, 208, 1152)
    check(cp, operand, Stream(2, 1, 4, 2, 2, 2, bulk=0), 13, 208, 1152, with_bias=True)
    check(cp, operand, Tile(64, 1, 2, 3, 2), 50, 208, 1152, with_bias=True)
    # The last unit is half full.
    check(cp, operand, Stream(2, 1, 4, 2, 2, 2, bulk=0), 13, 208, 1088)
    check(cp, operand, Tile(64, 1, 2, 3, 2), 50, 208, 1088)


@pytest.mark.parametrize("split", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "geometry",
    [
        (1, 1, 1, 1, 2),
        (1, 2, 1, 4, 4),
        (2, 2, 4, 2, 3),
        (2, 2, 7, 2, 2),
        (2, 7, 2, 4, 2),
        (2, 3, 1, 4, 2),
        (4, 2, 2, 2, 3),
        (8, 2, 4, 1, 2),
    ],
)
def test_streams_of_every_geometry_and_any_rows(cp, geometry, split):
    for M, N, K in (
        (1, 16, 128),
        (2, 48, 64),
        (3, 272, 2176),
        (5, 272, 2112),
        (8, 128, 4096),
        (17, 400, 1280),
        (64, 64, 320),
    ):
        check(cp, Operand("fp6_e3m2"), Stream(*geometry, split), M, N, K)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize(
    "geometry",
    [(16, 1, 1, 4), (32, 2, 2, 3), (64, 1, 2, 4), (128, 2, 2, 3), (128, 1, 3, 3), (256, 1, 2, 2), (128, 2, 1, 3)],
)
def test_tiles_of_every_geometry_and_any_rows(cp, geometry, split):
    for M, N, K in ((1, 16, 512), (100, 272, 2176), (129, 400, 1280), (129, 400, 1216), (700, 1040, 640)):
        check(cp, Operand("fp6_e3m2"), Tile(*geometry, split), M, N, K)


@pytest.mark.parametrize(("resident", "steps"), [(2, 1), (1, 2), (2, 2), (1, 4)])
def test_tiles_in_steps_and_two_a_multiprocessor(cp, resident, steps):
    for operand in (Operand("fp6_e3m2"), Operand("int4", group=64)):
        check(cp, operand, Tile(64, 1, 2, 3, 1, resident, steps), 100, 272, 2176)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("group", [32, 128, 256])
def test_tiles_that_fold_the_scales_into_the_weights(cp, fmt, dtype, group):
    check(cp, Operand(fmt, dtype, "float16", group), Tile(64, 2, 1, 3, 1, 2, 2, fold=1), 100, 272, 2176)


@pytest.mark.parametrize("fmt", ["int4", "uint4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("group", [0, 16, 32, 128, 256])
def test_zero_points_are_subtracted(cp, fmt, dtype, group):
    operand = Operand(fmt, dtype, "float16", group, zero=True)
    for configuration in (Stream(1, 2, 2, 2, 3, 1, x_rows=5), Stream(1, 1, 4, 2, 2, 2, bulk=0), Tile(64, 1, 2, 3, 2)):
        check(cp, operand, configuration, 5, 208, 1152)
        check(cp, operand, configuration, 5, 208, 1088)
    check(cp, operand, Tile(64, 2, 1, 3, 1, 2, 2, fold=1), 100, 272, 2176)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("group", [0, 32])
def test_gate_and_up_are_multiplied_where_they_meet(cp, fmt, dtype, group):
    operand = Operand(fmt, dtype, "float16", group, zero=fmt == "uint4", gated=True)
    for M, configuration in (
        (1, Stream(1, 2, 1, 8, 2, 1, x_rows=1)),
        (5, Stream(1, 2, 3, 2, 3, 2, x_rows=5)),
        (13, Stream(2, 1, 4, 2, 2, 4, bulk=0)),
        (100, Tile(64, 1, 2, 3, 2)),
        (300, Tile(128, 2, 1, 3, 1)),
    ):
        check(cp, operand, configuration, M, 416, 1152)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("group", [0, 128])
def test_results_can_be_float32(cp, fmt, group):
    operand = Operand(fmt, "float32", "float32", group)
    check(cp, operand, Stream(1, 2, 2, 2, 3, 1, x_rows=5), 5, 208, 1152)
    check(cp, operand, Tile(64, 1, 2, 3, 2), 50, 208, 1152)


def test_nothing_is_launched_for_no_rows(cp):
    kernels.matmul(Operand("int4"), Stream(1, 1, 1, 1, 2, 1), kernels.Pointers(0, 0, 0, 0), (0, 16, 128), 0)


@pytest.mark.parametrize(
    ("fmt", "dtype", "scale", "group", "zero"),
    [
        *itertools.product(FORMATS, ["float16", "bfloat16", "float32"], ["float32"], [0, 128], [False]),
        *itertools.product(["fp6_e2m3", "fp4_e2m1"], ["float16"], ["float16", "bfloat16"], [16, 64, 256], [False]),
        *itertools.product(["int4", "uint4"], ["float16", "float32"], ["float16"], [0, 32, 128], [True]),
    ],
)
def test_columns_are_looked_up_to_the_bit(cp, fmt, dtype, scale, group, zero):
    operand = Operand(fmt, dtype, scale, group, zero)
    for N, columns, K in ((208, 200, 1152), (16, 16, 64), (48, 33, 8256)):
        given, _, _, weight = case(cp, operand, 1, N, K)
        indices = cp.asarray([0, columns - 1, 7, -1, -columns, columns, -columns - 1, 8, 8, 15] * 3, np.int64)
        inside = (indices >= -columns) & (indices < columns)
        expected = cp.where(inside[:, None], weight.T[cp.where(inside, indices % columns, 0)], 0).astype(cp.float32)
        size = 4 if dtype == "float32" else 2
        y = cp.full((len(indices) + 1, K * size // 2), 0x7FC1, cp.uint16)  # NaN, and a row that must stay
        address = {name: given[name].data.ptr for name in ("packed", "scale", "zero")}
        pointers = kernels.Pointers(x=indices.data.ptr, y=y.data.ptr, **address)
        kernels.gather(operand, pointers, (len(indices), N, K), columns, cp.cuda.get_current_stream().ptr)
        cp.cuda.get_current_stream().synchronize()
        assert (y[-1] == 0x7FC1).all()
        meant = bfloat16(cp, expected)[0] if dtype == "bfloat16" else expected.astype(dtype).view(cp.uint16)
        assert ((y[:-1] == meant) | ((y[:-1] | meant) == 0x8000)).all()  # zeros of either sign
