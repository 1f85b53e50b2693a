"""Formats whose values are a list: NF4."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.formats.base import Codes, Floats, Format, nearest_code


@dataclass(frozen=True)
class Codebook(Format):
    """2 ** bits values in ascending order; a code is the position in the list."""

    name: str
    levels: tuple[float, ...]
    onnx_type: str | None = None

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Width of a code."""
        return len(self.levels).bit_length() - 1

    @cached_property
    def values(self) -> Floats:
        """float32 [2 ** bits]."""
        return np.asarray(self.levels, np.float32)

    def quantize_finite(self, x: Floats) -> tuple[Codes, Floats]:
        """Round float32 of any shape; see `Format.quantize_finite`."""
        codes = nearest_code(self.values, x).astype(np.uint8)
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
