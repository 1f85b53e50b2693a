"""An exact oracle for rounding: fractions, written from the definition of each format, not from its implementation."""

from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from onnxq.formats import Format, Integer, Minifloat

# Codes without a finite value, by magnitude: ONNX's E4M3FN has one NaN, its E5M2 has Inf and three NaN.
SPECIAL_MAGNITUDES = {"fp8_e4m3": {0x7F}, "fp8_e5m2": {0x7C, 0x7D, 0x7E, 0x7F}}


def minifloat_value(code: int, e: int, m: int) -> Fraction:
    exponent, mantissa = code >> m & (2**e - 1), code & (2**m - 1)
    bias = 2 ** (e - 1) - 1
    if exponent == 0:
        magnitude = Fraction(mantissa, 2**m) * Fraction(2) ** (1 - bias)
    else:
        magnitude = (1 + Fraction(mantissa, 2**m)) * Fraction(2) ** (exponent - bias)
    return -magnitude if code >> (e + m) else magnitude


class Oracle:
    """What a format's codes mean, and which code a number rounds to.

    Attributes:
        values: Exact value of each code; None where it has no finite one.
        has_signed_zero: The top bit of a code is its sign, so that zero has two codes.
    """

    def __init__(self, fmt: Format) -> None:
        codes = range(2**fmt.bits)
        self.has_signed_zero = isinstance(fmt, Minifloat)
        self.values: list[Fraction | None]
        if isinstance(fmt, Minifloat):
            special = SPECIAL_MAGNITUDES.get(fmt.name, set())
            top = 2 ** (fmt.bits - 1)
            self.values = [
                None if code % top in special else minifloat_value(code, fmt.exponent_bits, fmt.mantissa_bits)
                for code in codes
            ]
        elif isinstance(fmt, Integer):
            wraps_at = 2 ** (fmt.bits - 1) if fmt.signed else 2**fmt.bits
            self.values = [Fraction(code if code < wraps_at else code - 2**fmt.bits) for code in codes]
        else:
            self.values = [Fraction(float(value)) for value in fmt.values]
        ordered = sorted((value, code) for code, value in enumerate(self.values) if value is not None)
        if self.has_signed_zero:
            top = 2 ** (fmt.bits - 1)
            self._sides = [[pair for pair in ordered if pair[1] // top == negative] for negative in (0, 1)]
        else:
            self._sides = [ordered, ordered]

    def encode(self, x: np.float32) -> int:
        """Nearest value, the even code of two that are equally near; the sign of zero counts where a code holds it."""
        side, exact = self._sides[int(np.signbit(x))], Fraction(float(x))
        above = bisect_left(side, exact, key=lambda pair: pair[0])
        around = side[max(above - 1, 0) : above + 1]
        return min(around, key=lambda pair: (abs(pair[0] - exact), pair[1] % 2))[1]

    def encode_many(self, x: np.ndarray) -> np.ndarray:
        """The same, vectorised: search in the exact midpoints, which float64 holds."""
        return np.where(np.signbit(x), self._search(self._sides[1], x), self._search(self._sides[0], x))

    def _search(self, side: list[tuple[Fraction, int]], x: np.ndarray) -> np.ndarray:
        middles = self._midpoints(side)
        boundaries = np.array([float(middle) for middle in middles])
        assert [Fraction(float(boundary)) for boundary in boundaries] == middles
        codes = np.array([code for _, code in side], np.uint8)
        wide = x.astype(np.float64)
        lower, upper = (codes[np.searchsorted(boundaries, wide, edge)] for edge in ("left", "right"))
        return np.where(lower % 2 == 0, lower, upper)

    @staticmethod
    def _midpoints(side: list[tuple[Fraction, int]]) -> list[Fraction]:
        return [(low[0] + high[0]) / 2 for low, high in pairwise(side)]

    def probes(self) -> np.ndarray:
        """Every value and every midpoint, each also one float32 step down and up, and what lies beyond the ends."""
        exact = [value for value, _ in self._sides[0] + self._sides[1]]
        exact += self._midpoints(self._sides[0]) + self._midpoints(self._sides[1])
        points = np.array([float(each) for each in exact]).astype(np.float32)
        limits = np.finfo(np.float32)
        ends = np.array([0, limits.smallest_subnormal, limits.smallest_normal, limits.max, 2 * max(exact)], np.float32)
        steps = [np.nextafter(points, np.float32(end)) for end in (-np.inf, np.inf)]
        return np.unique(np.concatenate([points, *steps, ends]).view(np.uint32)).view(np.float32)


@pytest.fixture(scope="session")
def oracle_of() -> Callable[[Format], Oracle]:
    return cache(Oracle)
