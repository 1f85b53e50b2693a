"""Small floats: FP4 E2M1, FP6 E3M2 and E2M3, FP8, and any other EeMm with e + m <= 7."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.errors import UsageError
from onnxq.formats.base import Codes, Floats, Format, nearest_code

# Rows of numbers that stay in the second-level cache of a core while a chain of array operations passes over them.
_BLOCK = 1 << 16
_F32_MANTISSA_BITS = 23


@dataclass(frozen=True)
class Minifloat(Format):
    """Sign, `exponent_bits`, `mantissa_bits`; subnormals; bias 2^(e-1) - 1.

    Codes are all finite numbers, as in the OCP MX types and ONNX FLOAT4E2M1, FLOAT6E2M3 and FLOAT6E3M2, but for the two
    FP8 types that ONNX took over with their own specials: E4M3 (FN: one NaN, max 448) and E5M2 (IEEE: Inf and NaN).
    """

    exponent_bits: int
    mantissa_bits: int

    def __post_init__(self) -> None:
        """Refuse what does not fit in a byte with its sign."""
        e, m = self.exponent_bits, self.mantissa_bits
        if e < 1 or m < 0 or e + m > 7:
            raise UsageError(f"E{e}M{m} is not a format here: EeMm needs e >= 1, m >= 0 and e + m <= 7")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """One sign bit, the exponent and the mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def name(self) -> str:  # type: ignore[override]
        """`fp6_e3m2` and so on."""
        return f"fp{self.bits}_e{self.exponent_bits}m{self.mantissa_bits}"

    @property
    def onnx_type(self) -> str | None:  # type: ignore[override]
        """The ONNX tensor type of the same codes."""
        return {
            (2, 1): "FLOAT4E2M1",
            (2, 3): "FLOAT6E2M3",
            (3, 2): "FLOAT6E3M2",
            (4, 3): "FLOAT8E4M3FN",
            (5, 2): "FLOAT8E5M2",
        }.get((self.exponent_bits, self.mantissa_bits))

    @property
    def bias(self) -> int:
        """The exponent field of 1.0."""
        return int(2 ** (self.exponent_bits - 1)) - 1

    @cached_property
    def _magnitudes(self) -> Floats:
        """float32 [finite codes]: values of the non-negative codes, ascending."""
        codes = np.arange(2 ** (self.bits - 1))
        exponent, mantissa = codes >> self.mantissa_bits, codes & (2**self.mantissa_bits - 1)
        significand = mantissa / 2**self.mantissa_bits + (exponent > 0)
        values: Floats = np.ldexp(significand, np.maximum(exponent, 1) - self.bias).astype(np.float32)
        specials = {"FLOAT8E4M3FN": 1, "FLOAT8E5M2": 4}.get(self.onnx_type or "", 0)
        return values[: len(values) - specials]

    @cached_property
    def values(self) -> Floats:
        """float32 [2 ** bits]; the NaN and Inf codes of the FP8 types are NaN here."""
        half = np.full(2 ** (self.bits - 1), np.nan, np.float32)
        half[: len(self._magnitudes)] = self._magnitudes
        return np.concatenate([half, -half])

    def quantize_finite(self, x: Floats) -> tuple[Codes, Floats]:
        """Round float32 of any shape; see `Format.quantize_finite`."""
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        quantize = self._quantize_block if self.mantissa_bits else self._quantize_powers
        if flat.size <= _BLOCK:
            codes, values = quantize(flat)
            return codes.reshape(x.shape), values.reshape(x.shape)
        codes, values = np.empty(flat.size, np.uint8), np.empty(flat.size, np.float32)
        for start in range(0, flat.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            codes[part], values[part] = quantize(flat[part])
        return codes.reshape(x.shape), values.reshape(x.shape)

    def _quantize_block(self, x: Floats) -> tuple[Codes, Floats]:
        """Let a float32 addition do the rounding.

        In the binade 2^E the grid has step 2^(E-m). Adding 2^(E+23-m), whose own last place is that step, rounds to it,
        to even on ties, and leaves n = round(|x| / step) in the low bits of the sum. Below the first binade the step
        stays, which gives subnormals. The code is n plus 2^m for each binade above the first.
        """
        shift = _F32_MANTISSA_BITS - self.mantissa_bits
        largest, smallest = self._magnitudes[-1], self._magnitudes[1 << self.mantissa_bits]
        # numpy clips several times faster than it takes a minimum or maximum.
        total: Floats = np.clip(x, -largest, largest)
        np.abs(total, out=total)
        binade = np.clip(total, smallest, largest).view(np.int32)
        binade &= np.int32(0x7F800000)
        adder = binade + np.int32(shift << _F32_MANTISSA_BITS)
        total += adder.view(np.float32)
        values = total - adder.view(np.float32)
        sign = x.view(np.uint32) & np.uint32(0x80000000)
        signed = values.view(np.uint32)
        signed |= sign
        binade -= smallest.view(np.int32)
        binade >>= np.int32(shift)
        binade -= adder
        binade += total.view(np.int32)
        sign >>= np.uint32(32 - self.bits)
        binade |= sign.view(np.int32)
        return binade.astype(np.uint8), values

    def _quantize_powers(self, x: Floats) -> tuple[Codes, Floats]:
        """Without mantissa bits neighbours are a factor of two apart, and only the code, not n, tells even from odd."""
        codes = nearest_code(self._magnitudes, np.abs(x))
        codes |= np.signbit(x).astype(np.uint8) << np.uint8(self.bits - 1)
        return codes, self.decode(codes)
