"""Rounding to the nearest value of a format: by the format itself on processors, by a table on a GPU.

Both give the same codes, also of ties and of zeros with a sign.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.formats import Format
from onnxq.formats.base import Codes, Floats
from onnxq.methods.backend import module_of

_THREADS, _BLOCKS = 256, 4096


@dataclass(frozen=True)
class Table:
    """The numbers of a format, ascending, and where one begins and the one before it ends.

    Attributes:
        keys: uint32 [n - 1], ascending: of the least number that goes to each value but the first (see `keys_of`).
        codes: uint8 [n].
        values: float32 [n].
    """

    keys: npt.NDArray[np.uint32]
    codes: Codes
    values: Floats

    @classmethod
    def of(cls, kind: Format) -> "Table":
        """The table by which rounding gives what `Format.quantize_finite` gives."""
        finite = np.flatnonzero(np.isfinite(kind.values))
        _, first = np.unique(keys_of(kind.values[finite], np), return_index=True)
        codes = finite[first].astype(np.uint8)
        values = kind.values[codes]
        middle = (values[:-1].astype(np.float64) + values[1:]) / 2
        least = middle.astype(np.float32)
        least = np.where(least < middle, np.nextafter(least, np.float32(np.inf)), least)
        least = np.where(least == 0, np.float32(-0.0), least)
        # Of two that are equally near the format takes one or the other. Behind -0 comes +0 (which is -0 + 0).
        least = np.where(kind.quantize_finite(least)[0] == codes[:-1], least + np.float32(0), least)
        above = np.nextafter(least, np.float32(np.inf))
        least = np.where(kind.quantize_finite(least)[0] == codes[:-1], above, least)
        return cls(keys_of(least, np), codes, values)

    def on(self, xp: Any) -> tuple[Any, Any, Any]:
        """Keys, codes and values as arrays of a module."""
        return xp.asarray(self.keys), xp.asarray(self.codes), xp.asarray(self.values)

    def look_up(self, x: Floats) -> tuple[Codes, Floats]:
        """What the kernels do, by numpy."""
        at = np.searchsorted(self.keys, keys_of(x, np), side="right")
        return self.codes[at], self.values[at]


def keys_of(x: Any, xp: Any) -> Any:
    """Integers in the order of float32 numbers, -0 below +0."""
    bits = xp.ascontiguousarray(x).view(xp.uint32)
    return xp.where(bits >> 31 != 0, ~bits, bits | xp.uint32(0x80000000))


def quantize_finite(kind: Format, units: Any) -> tuple[Codes, Floats]:
    """`Format.quantize_finite` for arrays of either module."""
    if isinstance(units, np.ndarray):
        return kind.quantize_finite(units)
    xp = module_of(units)
    flat = xp.ascontiguousarray(units, xp.float32)
    codes, values = xp.empty(flat.shape, xp.uint8), xp.empty(flat.shape, xp.float32)
    if flat.size:
        table = Table.of(kind)
        blocks = min(-(-flat.size // _THREADS), _BLOCKS)
        arguments = (flat, np.int64(flat.size), *table.on(xp), np.int32(len(table.codes)), codes, values)
        kernel("round_all")((blocks,), (_THREADS,), arguments)
    return codes, values


@cache
def kernel(name: str) -> Any:
    """A kernel of `nearest.cu`, compiled for the GPU at hand."""
    import cupy

    return cupy.RawModule(code=Path(__file__).with_suffix(".cu").read_text("utf-8")).get_function(name)
