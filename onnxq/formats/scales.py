"""Scale types: what one scale of a group of weights is stored as."""

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from onnxq.errors import UsageError, nearest


def _finfo(dtype: np.dtype[np.generic]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class ScaleType:
    """How scales are stored: `dtype`, and how a wanted scale is brought to a storable one.

    A storable scale is never NaN, Inf, zero or subnormal.

    Attributes:
        name: As recipes write it.
        dtype: numpy type of the stored scale.
        onnx_type: ONNX tensor type of the same.
        two_level: Each scale is multiplied by one float32 for the whole tensor (NVFP4).
        rounding: `nearest`, or `floor` for powers of two.
    """

    name: str
    dtype: np.dtype[np.generic]
    onnx_type: str
    two_level: bool = False
    rounding: Literal["nearest", "floor"] = "nearest"

    @property
    def smallest(self) -> float:
        """The smallest normal number that is also normal in float32."""
        return float(max(_finfo(self.dtype).smallest_normal, np.finfo(np.float32).smallest_normal))

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return float(_finfo(self.dtype).max)

    def store(self, wanted: npt.NDArray[np.floating[Any]]) -> np.ndarray:
        """The storable scales next to `wanted` (float32 or float64, not negative, any shape)."""
        # Half the largest float32 for E8M0: its top code, 2^127, times any value would overflow.
        clipped = np.clip(wanted, np.float32(self.smallest), np.float32(min(self.largest, 2.0**126)))
        if self.rounding == "floor":
            # frexp gives a mantissa in [0.5, 1); a logarithm would leave the powers of two to the accuracy of libm.
            clipped = np.ldexp(np.float32(0.5), np.frexp(clipped)[1])
        stored: np.ndarray = clipped.astype(self.dtype)
        return stored


FP32 = ScaleType("fp32", np.dtype(np.float32), "FLOAT")
FP16 = ScaleType("fp16", np.dtype(np.float16), "FLOAT16")
BF16 = ScaleType("bf16", np.dtype(ml_dtypes.bfloat16), "BFLOAT16")
# OCP Microscaling Formats (MX) v1.0, section 6.3: the exponent of the largest magnitude, rounded down.
E8M0 = ScaleType("e8m0", np.dtype(ml_dtypes.float8_e8m0fnu), "FLOAT8E8M0", rounding="floor")
E4M3 = ScaleType("e4m3", np.dtype(ml_dtypes.float8_e4m3fn), "FLOAT8E4M3FN", two_level=True)

SCALE_TYPES = {scale.name: scale for scale in (FP32, FP16, BF16, E8M0, E4M3)}


def get_scale_type(name: str) -> ScaleType:
    """The scale type of that name.

    Raises:
        UsageError: There is none; the message gives the nearest.
    """
    if name not in SCALE_TYPES:
        raise UsageError(f"no scale type '{name}'; {nearest(name, SCALE_TYPES)}")
    return SCALE_TYPES[name]
