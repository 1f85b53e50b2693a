"""Signed and unsigned integers of two to eight bits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.errors import UsageError
from onnxq.formats.base import Codes, Floats, Format

_ONNX_WIDTHS = (2, 4, 8)


@dataclass(frozen=True)
class Integer(Format):
    """Two's complement, or unsigned; a value in a model is `(integer - zero point) * scale`."""

    width: int
    signed: bool = True

    def __post_init__(self) -> None:
        """Refuse widths that do not fit in a byte."""
        if not 2 <= self.width <= 8:
            raise UsageError(f"an integer of {self.width} bits is not a format here: from 2 to 8")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Width of a code."""
        return self.width

    @property
    def name(self) -> str:  # type: ignore[override]
        """`int4`, `uint4` and so on."""
        return f"{'int' if self.signed else 'uint'}{self.width}"

    @property
    def onnx_type(self) -> str | None:  # type: ignore[override]
        """The ONNX tensor type of the same codes."""
        return self.name.upper() if self.width in _ONNX_WIDTHS else None

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << (self.width - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The largest integer."""
        return self.low + (1 << self.width) - 1

    @cached_property
    def values(self) -> Floats:
        """float32 [2 ** bits]: the integer that each code means."""
        codes = np.arange(1 << self.width)
        return np.where(codes > self.high, codes - (1 << self.width), codes).astype(np.float32)

    def quantize_finite(self, x: Floats) -> tuple[Codes, Floats]:
        """Round float32 of any shape; see `Format.quantize_finite`."""
        # `out` keeps a scalar an array of no dimensions, which a numpy function would return as a number.
        values = np.rint(x, out=np.empty_like(x))
        np.clip(values, self.low, self.high, out=values)
        codes = values.astype(np.int8 if self.signed else np.uint8).view(np.uint8)
        if self.signed and self.width < 8:
            codes &= np.uint8((1 << self.width) - 1)
        return codes, values
