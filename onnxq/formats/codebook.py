"""Formats whose values are a list: NF4, and tables that are learned from each weight."""

from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from onnxq.formats.base import Codes, Floats, Format, nearest_code

# Between two levels of a table whose largest is 1: sixteen times the last place of 1.
_APART = 2.0**-19


@dataclass(frozen=True)
class Codebook(Format):
    """2 ** bits values in ascending order; a code is the position in the list.

    Attributes:
        levels: The values, the largest of them of magnitude 1.
        learned: Each weight has a table of its own, which stands beside its codes; `levels` is the one to begin with.
    """

    name: str
    levels: tuple[float, ...]
    onnx_type: str | None = None
    learned: bool = False

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Width of a code."""
        return len(self.levels).bit_length() - 1

    @cached_property
    def values(self) -> Floats:
        """float32 [2 ** bits]."""
        return np.asarray(self.levels, np.float32)

    @cached_property
    def max_value(self) -> float:
        """The largest magnitude of all: a table may reach farther on one side of zero than on the other."""
        return float(np.abs(self.values).max())

    def with_levels(self, levels: npt.ArrayLike) -> "Codebook":
        """The same format with another table, in units of its largest magnitude.

        Args:
            levels: [2 ** bits], ascending; equal ones are moved apart a little.
        """
        found = np.asarray(levels, np.float64)
        found = found / (np.abs(found).max() or 1.0)
        for at in range(1, len(found)):
            found[at] = max(found[at], found[at - 1] + _APART)
        return replace(self, levels=tuple(found.astype(np.float32).tolist()))

    def quantize_finite(self, x: Floats) -> tuple[Codes, Floats]:
        """Round float32 of any shape; see `Format.quantize_finite`."""
        codes = nearest_code(self.values, x)
        return codes, self.decode(codes)


# The sixteen levels of NormalFloat4, for weights scaled to [-1, 1] (QLoRA, arXiv 2305.14314, appendix E).
NF4 = Codebook(
    "nf4",
    (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)


def _learned(bits: int) -> Codebook:
    """Begun with evenly spaced quantiles of the normal distribution."""
    count = 2**bits
    quantiles = [NormalDist().inv_cdf((at + 0.5) / count) for at in range(count)]
    return Codebook(f"codebook{bits}", tuple(each / quantiles[-1] for each in quantiles), learned=True)


BINARY = Codebook("binary", (-1.0, 1.0))
LEARNED = tuple(map(_learned, (4, 3, 2)))
