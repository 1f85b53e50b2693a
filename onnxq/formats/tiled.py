"""The layout `tiled1` that the GPU kernels read: four- and six-bit codes in the order of tensor-core fragments.

A unit holds 16 columns n of the weight [K, N] by 128 rows k, for the 32 lanes of a warp: lane 4g + t has n = g and
g + 8, and of each 16 k those at 2t, 2t + 1, 2t + 8 and 2t + 9. docs/gpu_kernels.md draws the bits. Units follow
each other along K.
"""

import numpy as np

from onnxq.errors import UsageError
from onnxq.formats.base import Codes, Format
from onnxq.formats.minifloat import Minifloat

TILED_LAYOUT = "tiled1"
# Those that kernels decode.
TILED_FORMATS = ("fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int4", "uint4")
UNIT_N = 16
UNIT_K = 128

# [k step of 16, upper half of its k, t, odd k, n / 16, n >= 8, g]
_NATURAL = (8, 2, 4, 2, -1, 2, 8)


def tiled_bytes(K: int, N: int, bits: int) -> int:
    """Bytes of a [K, N] weight in the layout, both dimensions rounded up to whole units."""
    return -(-K // UNIT_K) * -(-N // UNIT_N) * UNIT_K * UNIT_N * bits // 8


def pack_tiled(codes: Codes, fmt: Format) -> Codes:
    """Order codes for the GPU kernels.

    Args:
        codes: uint8 [K, N], each below 2 ** fmt.bits; K a multiple of 128, N of 16.
        fmt: A format of four or six bits.

    Returns:
        uint8 [N / 16, K / 128, 256 * fmt.bits].

    Raises:
        UsageError: the shape or the width of the format does not fit.
    """
    K, N = _checked(codes.shape, fmt)
    packed = np.empty((N // UNIT_N, K // UNIT_K, 256 * fmt.bits), np.uint8)
    for index in range(K // UNIT_K):
        unit = np.ascontiguousarray(codes[index * UNIT_K : (index + 1) * UNIT_K]).reshape(_NATURAL)
        low = unit & np.uint8(15)
        if fmt.bits == 6:
            packed[:, index, :512] = _fragments(_high_bytes(unit >> np.uint8(4)))
        pairs = low[:, 0] | low[:, 1] << np.uint8(4)
        if _spread_signs(fmt):
            pairs = _E2M1_BYTES[pairs]
        packed[:, index, -1024:-512] = _fragments(pairs[:4])
        packed[:, index, -512:] = _fragments(pairs[4:])
    return packed


def unpack_tiled(packed: Codes, fmt: Format) -> Codes:
    """The exact inverse of `pack_tiled`: uint8 [K, N] from uint8 [N / 16, K / 128, 256 * fmt.bits]."""
    strips, units = packed.shape[:2]
    K, N = _checked((units * UNIT_K, strips * UNIT_N), fmt)
    codes = np.empty((K, N), np.uint8)
    for index in range(units):
        unit = codes[index * UNIT_K : (index + 1) * UNIT_K].reshape(_NATURAL)
        for half, plane in enumerate((packed[:, index, -1024:-512], packed[:, index, -512:])):
            pairs = _natural(plane)
            if _spread_signs(fmt):
                pairs = _E2M1_PAIRS[pairs]
            unit[half * 4 : half * 4 + 4, 0] = pairs & np.uint8(15)
            unit[half * 4 : half * 4 + 4, 1] = pairs >> np.uint8(4)
        if fmt.bits == 6:
            unit |= _high_bits(_natural(packed[:, index, :512])) << np.uint8(4)
    return codes


def fits_tiled(K: int, N: int, fmt: Format) -> bool:
    """Whether a [K, N] weight has whole units only, and a format that kernels decode."""
    return fmt.name in TILED_FORMATS and K > 0 and N > 0 and K % UNIT_K == 0 and N % UNIT_N == 0


def low_plane_codes(fmt: Format) -> Codes:
    """uint8 [256, 2]: the low four bits of the two codes in a byte of the low plane, the one at the lower k first."""
    pairs = _E2M1_PAIRS if _spread_signs(fmt) else _PAIRS
    return np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=1)


def _checked(shape: tuple[int, ...], fmt: Format) -> tuple[int, int]:
    if fmt.bits not in (4, 6):
        raise UsageError(f"{fmt.name} has {fmt.bits} bits; the layout {TILED_LAYOUT} is for four and six")
    if len(shape) != 2 or shape[0] % UNIT_K or shape[1] % UNIT_N:
        raise UsageError(
            f"codes {list(shape)} do not fit the layout {TILED_LAYOUT}: [K, N] with K % {UNIT_K} == 0 and "
            f"N % {UNIT_N} == 0 is needed; pad with code 0, or keep the dense layout"
        )
    return shape[0], shape[1]


def _fragments(plane: Codes) -> Codes:
    """[4 steps, t, odd, n / 16, n >= 8, g] -> [n / 16, 512]: sixteen bytes a lane, one word a step.

    Row g stands in the upper byte of each half word and row g + 8 in the lower: one mask makes fp16 of the upper ones.
    """
    return plane[:, :, :, :, ::-1].transpose(3, 5, 1, 0, 2, 4).reshape(plane.shape[3], 512)


def _natural(fragments: Codes) -> Codes:
    """Undo `_fragments`."""
    lanes = fragments.reshape(fragments.shape[0], 8, 4, 4, 2, 2)
    return np.ascontiguousarray(lanes.transpose(3, 2, 4, 0, 5, 1)[:, :, :, :, ::-1])


def _high_bytes(high: Codes) -> Codes:
    """The two high bits of four weights each, [8, 2, ...] -> one byte [4, ...].

    Counting steps of 16 and halves of a step, the bits of weights 0 to 3 stand at (4, 7), (0, 3), (2, 5) and (6, 9): a
    shift or a rotation brings each to (4, 7). Bit 9 is bit 1 of the next byte of the word.
    """
    first, second, third, fourth = (high[odd::2, half] for odd in (0, 1) for half in (0, 1))
    spread = _at(first, 4, 7) | _at(second, 0, 3) | _at(third, 2, 5) | (fourth & np.uint8(1)) << np.uint8(6)
    carried = fourth & np.uint8(2)
    spread[:, :, :, :, 0] |= carried[:, :, :, :, 1]
    spread[:, :, :, :, 1] |= carried[:, :, ::-1, :, 0]
    return spread


def _high_bits(byte: Codes) -> Codes:
    """Undo `_high_bytes`."""
    high = np.empty((8, 2, *byte.shape[1:]), np.uint8)
    for (odd, half), low in zip(((0, 0), (0, 1), (1, 0)), (4, 0, 2), strict=True):
        high[odd::2, half] = byte >> np.uint8(low) & np.uint8(1) | byte >> np.uint8(low + 2) & np.uint8(2)
    last = high[1::2, 1]
    last[:] = byte >> np.uint8(6) & np.uint8(1)
    last[:, :, :, :, 1] |= byte[:, :, :, :, 0] & np.uint8(2)
    last[:, :, ::-1, :, 0] |= byte[:, :, :, :, 1] & np.uint8(2)
    return high


def _at(two: Codes, low: int, high: int) -> Codes:
    return (two & np.uint8(1)) << np.uint8(low) | (two & np.uint8(2)) << np.uint8(high - 1)


def _spread_signs(fmt: Format) -> bool:
    """Whether two codes in a byte stand as `s eem` at bits 7, 3..1 and 0, 6..4: where fp16 has sign and exponent."""
    return fmt.bits == 4 and isinstance(fmt, Minifloat)


_PAIRS = np.arange(256, dtype=np.uint8)
_E2M1_BYTES = (
    (_PAIRS & 8) << 4 | (_PAIRS & 7) << 1 | _PAIRS >> 7 | (_PAIRS & 0x70)  # the earlier code in the low nibble
)
_E2M1_PAIRS = np.empty(256, np.uint8)
_E2M1_PAIRS[_E2M1_BYTES] = _PAIRS
