"""Formats by name."""

import re

from onnxq.errors import UsageError, nearest
from onnxq.formats.base import Format
from onnxq.formats.codebook import BINARY, LEARNED, NF4, Codebook
from onnxq.formats.integer import Integer
from onnxq.formats.minifloat import Minifloat

NAMED_FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Minifloat(4, 3),
        Minifloat(5, 2),
        Minifloat(2, 3),
        Minifloat(3, 2),
        Minifloat(2, 2),
        Minifloat(2, 1),
        Minifloat(3, 0),
        Minifloat(1, 2),
        *(Integer(bits) for bits in (8, 6, 5, 4, 3, 2)),
        *(Integer(bits, signed=False) for bits in (8, 4, 2)),
        NF4,
    )
}

LEARNED_FORMATS: dict[str, Codebook] = {each.name: each for each in LEARNED}
"""Formats whose values stand beside the codes of each weight."""
ALL_FORMATS: dict[str, Format] = {**NAMED_FORMATS, **LEARNED_FORMATS, BINARY.name: BINARY}
"""All that have a name of their own; `binary` is what is left where a few weights stay in INT8."""


def get_format(name: str) -> Format:
    """The format of that name: one of `ALL_FORMATS`, or any other `fp<bits>_e<e>m<m>`.

    Raises:
        UsageError: There is none; the message gives the nearest.
    """
    if name in ALL_FORMATS:
        return ALL_FORMATS[name]
    match = re.fullmatch(r"fp(\d)_e(\d)m(\d)", name)
    if match:
        bits, e, m = map(int, match.groups())
        if bits == 1 + e + m:
            return Minifloat(e, m)
    raise UsageError(f"no format '{name}'; {nearest(name, ALL_FORMATS)}, or any other fp<bits>_e<e>m<m>")
