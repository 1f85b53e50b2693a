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
    planes = packed.copy().view("<u4").reshape(strips, units, -1, 32, 4)
    a = np.empty((strips, units, 8, 32, 4), np.uint32)
    for j in range(8):
        if name.startswith("fp6"):
            w = planes[..., j // 2]
            w0, w1, w2 = w[:, :, 0], w[:, :, 1], w[:, :, 2]
            if name == "fp6_e3m2":
                four = w0 >> 2 & 0x18181818 | w1 >> 4 & 0x06060606 | (w2 << 2 | w2 >> 30) & 0x81818181
            else:
                four = w0 >> 2 & 0x0C0C0C0C | w1 >> 4 & 0x03030303 | w2 << 2 & 0xC0C0C0C0
            for at, word in ((0, w2), (2, four)) if j % 2 else ((0, w0), (2, w1)):
                swapped = word >> 8 & 0x00FF00FF | word << 8 & 0xFF00FF00
                if name == "fp6_e3m2":
                    a[:, :, j, :, at], a[:, :, j, :, at + 1] = word & 0x9F009F00, word << 8 & 0x9F009F00
                else:
                    a[:, :, j, :, at] = (word ^ word << 1) & 0x8F808F80
                    a[:, :, j, :, at + 1] = swapped & 0x8F808F80
            continue
        x = planes[:, :, j // 4, :, j % 4]
        if name == "fp4_e2m1":
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


@pytest.mark.parametrize("name", ["fp6_e3m2", "fp4_e2m1", "int4"])
def test_each_bit_of_the_packed_form_carries_one_bit_of_one_code(name):
    fmt = get_format(name)
    zero = pack_tiled(np.zeros((128, 16), np.uint8), fmt)
    assert not zero.any()
    seen = np.zeros(zero.size * 8, int)
    for bit in range(fmt.bits):
        seen += np.unpackbits(pack_tiled(np.full((128, 16), 1 << bit, np.uint8), fmt).reshape(-1))
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", [(127, 16), (128, 8), (128,)])
def test_a_ragged_weight_is_refused_with_the_way_out(shape):
    with pytest.raises(UsageError, match="pad with code 0"):
        pack_tiled(np.zeros(shape, np.uint8), get_format("int4"))


@pytest.mark.parametrize("name", ["int8", "fp6_e4m1"])
def test_other_formats_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} is not in the layout tiled2, which is for fp6_e3m2, "):
        pack_tiled(np.zeros((128, 16), np.uint8), get_format(name))
