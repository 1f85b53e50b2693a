"""The 4+2 bit-split of six-bit codes: one plane of the four low bits, one of the two high bits.

Both planes are aligned to bytes, so that a kernel reads whole words of each (ZeroQuant(4+2), arXiv 2312.08583; which
bits go where follows its published kernel: the sign and the first exponent bit stand in the two-bit plane).
"""

import numpy as np

from onnxq.formats.base import Codes
from onnxq.formats.packing import pack, unpack


def split_planes(codes: Codes) -> tuple[Codes, Codes]:
    """Split six-bit codes.

    Args:
        codes: uint8, any shape, row-major, each below 64.

    Returns:
        The four low bits of each, two codes a byte, and the two high bits of each, four codes a byte; the earlier code
        in the lower bits. Together 6 bits a code, but for the last byte of each plane.
    """
    return pack(codes & np.uint8(0x0F), 4), pack(codes >> np.uint8(4), 2)


def join_planes(low: Codes, high: Codes, count: int) -> Codes:
    """The exact inverse of `split_planes`: uint8 [count]."""
    return unpack(low, 4, count) | unpack(high, 2, count) << np.uint8(4)
