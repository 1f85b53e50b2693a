"""The layout `tiled2` that the GPU kernels read: four- and six-bit codes in the order of tensor-core fragments.

A unit holds 16 columns n of the weight [K, N] by 128 rows k, for the 32 lanes of a warp: lane 4g + t has n = g and
g + 8, and of each 16 k those at 2t, 2t + 1, 2t + 8 and 2t + 9. docs/gpu_kernels.md draws the bits. Units follow
each other along K.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import UsageError
from onnxq.formats.base import Codes, Format
from onnxq.formats.minifloat import Minifloat

TILED_VERSION = 2  # the attribute `layout`
TILED_LAYOUT = f"tiled{TILED_VERSION}"
# Those that kernels decode.
TILED_FORMATS = ("fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int4", "uint4")
UNIT_N = 16
UNIT_K = 128

Words = NDArray[np.uint32]
Pairs = NDArray[np.uint16]

# [k step of 16, upper half of its k, t, odd k, n / 16, n >= 8, g]
_NATURAL = (8, 2, 4, 2, -1, 2, 8)
# Three words hold twelve codes of six bits and, in two bits of each byte, the parts of four more: turned to the right
# by so many bits, a word has its part under the mask.
TURNS = (2, 4, 30)
PARTS = {"fp6_e3m2": (0x18, 0x06, 0x81), "fp6_e2m3": (0x0C, 0x03, 0xC0)}


def tiled_bytes(K: int, N: int, bits: int) -> int:
    """Bytes of a [K, N] weight in the layout, both dimensions rounded up to whole units."""
    return -(-K // UNIT_K) * UNIT_K * tiled_columns(N) * bits // 8


def pack_tiled(codes: Codes, fmt: Format) -> Codes:
    """Order codes for the GPU kernels.

    Args:
        codes: uint8 [K, N], each below 2 ** fmt.bits; K a multiple of 128, N of 16.
        fmt: One of TILED_FORMATS.

    Returns:
        uint8 [N / 16, K / 128, 256 * fmt.bits].

    Raises:
        UsageError: the shape or the format does not fit.
    """
    K, N = _checked(codes.shape, fmt)
    packed = np.empty((N // UNIT_N, K // UNIT_K, fmt.bits // 2, 512), np.uint8)
    for index in range(K // UNIT_K):
        unit = np.ascontiguousarray(codes[index * UNIT_K : (index + 1) * UNIT_K]).reshape(_NATURAL)
        if fmt.bits == 6:
            packed[:, index] = _three_words(unit, fmt)
        else:
            pairs = unit[:, 0] | unit[:, 1] << np.uint8(4)
            if _spread_signs(fmt):
                pairs = _E2M1_BYTES[pairs]
            packed[:, index, 0], packed[:, index, 1] = _fragments(pairs[:4]), _fragments(pairs[4:])
    return packed.reshape(N // UNIT_N, K // UNIT_K, 256 * fmt.bits)


def unpack_tiled(packed: Codes, fmt: Format) -> Codes:
    """The exact inverse of `pack_tiled`: uint8 [K, N] from uint8 [N / 16, K / 128, 256 * fmt.bits]."""
    strips, units = packed.shape[:2]
    K, N = _checked((units * UNIT_K, strips * UNIT_N), fmt)
    codes = np.empty((K, N), np.uint8)
    for index in range(units):
        unit = codes[index * UNIT_K : (index + 1) * UNIT_K].reshape(_NATURAL)
        planes = packed[:, index].reshape(strips, fmt.bits // 2, 512)
        if fmt.bits == 6:
            _from_three_words(planes, fmt, unit)
            continue
        for half in range(2):
            pairs = _natural(planes[:, half])
            if _spread_signs(fmt):
                pairs = _E2M1_PAIRS[pairs]
            unit[half * 4 : half * 4 + 4, 0] = pairs & np.uint8(15)
            unit[half * 4 : half * 4 + 4, 1] = pairs >> np.uint8(4)
    return codes


def fits_tiled(K: int, N: int, fmt: Format) -> bool:
    """Whether a [K, N] weight has whole units along K and one at least along N, and a format that kernels decode."""
    return fmt.name in TILED_FORMATS and K > 0 and K % UNIT_K == 0 and N >= UNIT_N


def tiled_columns(N: int) -> int:
    """Columns of whole units that hold N."""
    return -(-N // UNIT_N) * UNIT_N


def codes_of_bytes(fmt: Format) -> Codes:
    """uint8 [256, 2]: the two four-bit codes in a byte, the one at the lower k first."""
    pairs = _E2M1_PAIRS if _spread_signs(fmt) else _PAIRS
    return np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=1)


@cache
def half_words(name: str) -> Pairs:
    """uint16 [64, 64]: the half word that holds the six-bit codes a of row g and b of row g + 8.

    E3M2 has one in each byte, a in the upper. Of E2M3, where fp16 has a field that is no part of one byte, b stands at
    bits 7, 3...0 and 15, and the bits of a are the differences between neighbours: `word ^ word << 1` has them.
    """
    a, b = np.indices((64, 64), np.int32)
    if name == "fp6_e3m2":
        return np.asarray(((a & 32) << 2 | a & 31) << 8 | (b & 32) << 2 | b & 31, np.uint16)
    half = (b & 32) << 2 | b >> 1 & 15 | (b & 1) << 15
    for bit, (at, neighbour) in enumerate(((6, 7), (8, 7), (9, 8), (10, 9), (11, 10), (14, 15))):
        half |= ((half >> neighbour ^ a >> bit) & 1) << at
    return half.astype(np.uint16)


@cache
def codes_of_half_words(name: str) -> Codes:
    """uint8 [65536, 2]: the inverse of `half_words`, whatever the bits hold that belong to other codes."""
    halves = half_words(name)
    used = np.bitwise_or.reduce(halves, axis=None)
    found: Codes = np.empty((65536, 2), np.uint8)
    found[halves] = np.indices((64, 64), np.uint8).transpose(1, 2, 0)
    own: Codes = found[np.arange(65536, dtype=np.uint16) & used]
    return own


def _three_words(unit: Codes, fmt: Format) -> Codes:
    """Six-bit codes of a unit in natural order to [n / 16, 3, 512]."""
    halves = half_words(fmt.name)[unit[..., 0, :], unit[..., 1, :]]
    ordered = np.ascontiguousarray(halves.transpose(4, 5, 2, 0, 1, 3))  # [n / 16, g, t, step, upper half, odd k]
    four = ordered.view("<u4").reshape(-1, 32, 4, 4)
    words = four[..., :3].copy()
    for at, (turn, part) in enumerate(zip(TURNS, PARTS[fmt.name], strict=True)):
        words[..., at] |= _turned(four[..., 3] & np.uint32(part * 0x01010101), 32 - turn)
    return np.ascontiguousarray(words.transpose(0, 3, 1, 2)).view(np.uint8).reshape(-1, 3, 512)


def _from_three_words(planes: Codes, fmt: Format, unit: Codes) -> None:
    """Undo `_three_words` into `unit`."""
    words = np.ascontiguousarray(planes).view("<u4").reshape(-1, 3, 32, 4)
    four = np.empty((words.shape[0], 32, 4, 4), "<u4")
    four[..., :3] = words.transpose(0, 2, 3, 1)
    parts = (
        _turned(words[:, at], turn) & np.uint32(part * 0x01010101)
        for at, (turn, part) in enumerate(zip(TURNS, PARTS[fmt.name], strict=True))
    )
    four[..., 3] = np.bitwise_or.reduce(list(parts))
    codes = codes_of_half_words(fmt.name)[four.view("<u2").reshape(-1, 8, 4, 8, 2, 2)]
    unit[:] = codes.transpose(3, 4, 2, 5, 0, 6, 1)


def _turned(words: Words, by: int) -> Words:
    """Rotated to the right."""
    return words >> np.uint32(by) | words << np.uint32(32 - by)


def _checked(shape: tuple[int, ...], fmt: Format) -> tuple[int, int]:
    if fmt.name not in TILED_FORMATS:
        raise UsageError(f"{fmt.name} is not in the layout {TILED_LAYOUT}, which is for {', '.join(TILED_FORMATS)}")
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


def _spread_signs(fmt: Format) -> bool:
    """Whether two codes in a byte stand as `s eem` at bits 7, 3..1 and 0, 6..4: where fp16 has sign and exponent."""
    return isinstance(fmt, Minifloat)


_PAIRS = np.arange(256, dtype=np.uint8)
_E2M1_BYTES = (
    (_PAIRS & 8) << 4 | (_PAIRS & 7) << 1 | _PAIRS >> 7 | (_PAIRS & 0x70)  # the earlier code in the low nibble
)
_E2M1_PAIRS = np.empty(256, np.uint8)
_E2M1_PAIRS[_E2M1_BYTES] = _PAIRS
