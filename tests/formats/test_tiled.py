import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.formats import get_format
from onnxq.formats.tiled import pack_tiled, tiled_bytes, unpack_tiled

FORMATS = ["fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int4", "uint4"]
every_format = pytest.mark.parametrize("name", FORMATS)
SIGN = np.uint32(0x80008000)


def random_codes(shape, bits):
    return np.random.default_rng([*shape, bits]).integers(0, 2**bits, shape, np.uint8)


def kernel_halves(packed, name):
    """What custom_ops/cuda/common.cuh makes of a packed weight: fp16 [strips, units, step, lane, register, half]."""
    strips, units = packed.shape[:2]
    low = packed[:, :, -1024:].copy().view("<u4").reshape(strips, units, 2, 32, 4)
    a = np.empty((strips, units, 8, 32, 4), np.uint32)
    for j in range(8):
        x = low[:, :, j // 4, :, j % 4]
        if name.startswith("fp6"):
            h = packed[:, :, :512].copy().view("<u4").reshape(strips, units, 32, 4)[..., j // 2]
            h0, h1 = (h << 2, h >> 2 | h << 30) if j % 2 else (h, h << 4)
            p = x & 0x0F0F0F0F | h0 & 0xF0F0F0F0
            q = x >> 4 & 0x0F0F0F0F | h1 & 0xF0F0F0F0
            words = [p, p << 8, q, q << 8]
            if name == "fp6_e3m2":
                a[:, :, j] = np.stack([word & 0x9F009F00 for word in words], -1)
            else:
                a[:, :, j] = np.stack([word & SIGN | word >> 1 & 0x0F800F80 for word in words], -1)
                a[:, :, j, :, 1] = p << 8 & SIGN | p << 7 & 0x0F800F80
                a[:, :, j, :, 3] = q << 8 & SIGN | q << 7 & 0x0F800F80
        elif name == "fp4_e2m1":
            late = [x << s & SIGN | f & 0x0E000E00 for s, f in ((7, x >> 3), (15, x << 5))]
            a[:, :, j] = np.stack([x & 0x8E008E00, x << 8 & 0x8E008E00, *late], -1)
        else:
            flip = 8 if name == "int4" else 0
            values = []
            for word in (x >> 8, x, x >> 12, x >> 4):
                nibbles = np.stack([word & 15, word >> 16 & 15], -1) ^ flip
                values.append(nibbles.astype(np.float16) - np.float16(flip))
            a[:, :, j] = np.stack(values, -2).view(np.uint32)[..., 0]
    return a.view(np.float16).reshape(*a.shape, 2)


@every_format
def test_a_kernel_finds_every_weight_in_its_fragment(name):
    fmt = get_format(name)
    K, N = 384, 48
    codes = random_codes((K, N), fmt.bits)
    halves = kernel_halves(pack_tiled(codes, fmt), name).astype(np.float64)
    factor = {"fp6_e3m2": 2.0**12, "fp6_e2m3": 2.0**14, "fp4_e2m1": 2.0**14}.get(name, 1.0)
    lane, register, half = np.arange(32)[:, None, None], np.arange(4)[:, None], np.arange(2)
    n = lane // 4 + register % 2 * 8
    k = lane % 4 * 2 + register // 2 * 8 + half
    for strip in range(N // 16):
        for unit in range(K // 128):
            for step in range(8):
                expected = fmt.values[codes[unit * 128 + step * 16 + k, strip * 16 + n]]
                np.testing.assert_array_equal(halves[strip, unit, step] * factor, expected)


@every_format
def test_every_code_comes_back_from_every_slot(name):
    fmt = get_format(name)
    slots = np.arange(128 * 16).reshape(128, 16)
    for code in range(2**fmt.bits):
        codes = ((slots * 7 + slots // 64 + code) % 2**fmt.bits).astype(np.uint8)
        packed = pack_tiled(codes, fmt)
        assert packed.size == tiled_bytes(128, 16, fmt.bits)
        np.testing.assert_array_equal(unpack_tiled(packed, fmt), codes)


@every_format
def test_a_large_weight_comes_back_from_any_memory_order(name):
    fmt = get_format(name)
    codes = random_codes((640, 112), fmt.bits)
    for view in (codes, np.asfortranarray(codes)):
        packed = pack_tiled(view, fmt)
        assert packed.shape == (7, 5, 256 * fmt.bits)
        np.testing.assert_array_equal(unpack_tiled(packed, fmt), codes)


def test_each_bit_of_the_packed_form_carries_one_bit_of_one_code():
    fmt = get_format("fp6_e3m2")
    zero = pack_tiled(np.zeros((128, 16), np.uint8), fmt)
    assert not zero.any()
    seen = np.zeros(zero.size * 8, int)
    for bit in range(6):
        seen += np.unpackbits(pack_tiled(np.full((128, 16), 1 << bit, np.uint8), fmt).reshape(-1))
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", [(127, 16), (128, 8), (128,)])
def test_a_ragged_weight_is_refused_with_the_way_out(shape):
    with pytest.raises(UsageError, match="pad with code 0"):
        pack_tiled(np.zeros(shape, np.uint8), get_format("int4"))


def test_other_widths_are_refused():
    with pytest.raises(UsageError, match="int8 has 8 bits"):
        pack_tiled(np.zeros((128, 16), np.uint8), get_format("int8"))
