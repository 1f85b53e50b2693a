"""`Format`: a storable number type of two to eight bits."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxq.errors import NonFiniteError, number_of

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

# Values of which each is compared with all numbers; among more, each number is looked up.
_FEW = 16


class Format(ABC):
    """A number type whose every value has one code.

    Attributes:
        name: Canonical name, as recipes write it (`fp6_e2m3`).
        bits: Width of a code.
        onnx_type: Name of the ONNX tensor type that holds it, or None where ONNX has none.
    """

    name: str
    bits: int
    onnx_type: str | None

    @cached_property
    @abstractmethod
    def values(self) -> Floats:
        """What each code means: float32 [2 ** bits], indexed by code; NaN where a code means no finite number."""

    @cached_property
    def max_value(self) -> float:
        """The largest magnitude a code can hold on both sides of zero: what absmax scaling maps to."""
        finite = self.values[np.isfinite(self.values)]
        return float(min(finite.max(), -finite.min())) if finite.min() < 0 else float(finite.max())

    @abstractmethod
    def quantize_finite(self, x: Floats) -> tuple[Codes, Floats]:
        """Codes as from `encode`, and the values they mean, for a caller that has made sure that `x` is finite."""

    def encode(self, x: npt.ArrayLike) -> Codes:
        """Round to the nearest value, ties to the even code, saturating.

        Args:
            x: Numbers in units of the scale, any shape; float64 is rounded to float32 first.

        Returns:
            uint8 codes of the shape of `x`, in the low `bits` bits.

        Raises:
            NonFiniteError: `x` holds NaN or Inf, or a float64 beyond float32; no code stands for them.
        """
        # Numbers beyond float32 and signaling NaN would warn here; they are refused below.
        with np.errstate(over="ignore", invalid="ignore"):
            floats = np.asarray(x, np.float32)
        if not np.isfinite(floats).all():
            bad = np.argwhere(~np.isfinite(floats))
            found = f"{number_of(len(bad), 'NaN or Inf value')} in float32 (first at {bad[0].tolist()})"
            raise NonFiniteError(f"{found}; {self.name} has none")
        return self.quantize_finite(floats)[0]

    def decode(self, codes: Codes) -> Floats:
        """The numbers that codes mean, in units of the scale."""
        return self.values.take(codes)


def nearest_code(values: Floats, x: Floats) -> Codes:
    """Index of the value nearest to each number; a tie goes to the even index.

    Args:
        values: float32 [n], strictly ascending, at most 256.
        x: float32, any shape.
    """
    # The midpoint of two float32 values is exact in float64.
    middle = (values[:-1].astype(np.float64) + values[1:]) / 2
    if len(values) > _FEW:
        below = np.searchsorted(middle, x, side="left")
        above = np.searchsorted(middle, x, side="right")
        return np.where(below % 2 == 0, below, above).astype(np.uint8)
    # To be above a midpoint is to be above the float32 next to it, which is several times faster to tell.
    rounded = middle.astype(np.float32)
    under = np.where(rounded > middle, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    over = np.where(rounded < middle, np.nextafter(rounded, np.float32(np.inf)), rounded)
    codes = np.zeros(x.shape, np.uint8)
    for at in range(len(middle)):
        codes += x > under[at] if at % 2 == 0 else x >= over[at]
    return codes
