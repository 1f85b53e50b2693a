"""Codes of one to eight bits to bytes and back, in the order of ONNX `raw_data`: dense, least significant bit first."""

import numpy as np
import numpy.typing as npt

from onnxq.formats.base import Codes


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes `count` codes take; the last byte is filled up with zero bits."""
    return (count * bits + 7) // 8


def pack(codes: Codes, bits: int) -> Codes:
    """Put codes side by side without gaps.

    Args:
        codes: uint8, any shape, row-major order; each below 2 ** bits.
        bits: Width of a code, 1 to 8.

    Returns:
        uint8 [packed_bytes(codes.size, bits)].
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if bits == 8:
        return flat
    whole = flat.size // 8 * 8
    packed = np.empty(packed_bytes(flat.size, bits), np.uint8)
    packed[: whole // 8 * bits] = _squeeze(flat[:whole].view("<u8"), bits).reshape(-1)
    if whole < flat.size:
        last = np.zeros(8, np.uint8)
        last[: flat.size - whole] = flat[whole:]
        tail = packed[whole // 8 * bits :]
        tail[:] = _squeeze(last.view("<u8"), bits).reshape(-1)[: tail.size]
    return packed


def unpack(packed: Codes, bits: int, count: int) -> Codes:
    """The exact inverse of `pack`: uint8 [count]."""
    packed = np.ascontiguousarray(packed).reshape(-1)
    if bits == 8:
        return packed[:count]
    groups = -(-count // 8)
    rows = np.zeros((groups, 8), np.uint8)
    whole = packed.size // bits
    rows[:whole, :bits] = packed[: whole * bits].reshape(whole, bits)
    if whole < groups:
        rows[whole, : packed.size - whole * bits] = packed[whole * bits :]
    return _spread(rows.view("<u8").reshape(-1), bits).view(np.uint8)[:count]


def _squeeze(eight: npt.NDArray[np.uint64], bits: int) -> Codes:
    """Eight codes a 64-bit word, one in each byte -> [n, bits] bytes: close the gaps between neighbours, thrice."""
    gap = 8 - bits
    for width in (8, 16, 32):
        low = _lanes(width)
        eight = (eight & low) | ((eight & ~low) >> np.uint64(gap * width // 8))
    return eight.view(np.uint8).reshape(-1, 8)[:, :bits]


def _spread(dense: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """Undo `_squeeze`: open the gaps, the widest first."""
    gap = 8 - bits
    for width in (32, 16, 8):
        low = _lanes(width, used=bits * width // 8)
        dense = (dense & low) | ((dense << np.uint64(gap * width // 8)) & (low << np.uint64(width)))
    return dense


def _lanes(width: int, used: int | None = None) -> np.uint64:
    """Ones in the low `used` bits of the lower half of each lane of 2 * width bits."""
    ones = (1 << (width if used is None else used)) - 1
    return np.uint64(sum(ones << start for start in range(0, 64, 2 * width)))
