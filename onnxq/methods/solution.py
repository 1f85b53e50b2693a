"""`Solution`: what a solver gives back for one weight."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from onnxq.formats import Format
from onnxq.formats.base import Floats


@dataclass(frozen=True)
class Outliers:
    """The sparse part of a weight.

    Attributes:
        positions: [n], ascending, in the flat codes of the weight.
        values: float32 [n], numbers that sixteen bits hold.
    """

    positions: npt.NDArray[np.int64]
    values: Floats

    def dense(self, shape: tuple[int, ...]) -> Floats:
        """The sparse matrix with its zeros."""
        made = np.zeros(shape, np.float32)
        made.reshape(-1)[self.positions] = self.values
        return made

    def turned(self, shape: tuple[int, int, int]) -> "Outliers":
        """The same of [A, K, C] seen as [C, K, A]; `shape` is that before."""
        a, k, c = np.unravel_index(self.positions, shape)
        there = np.ravel_multi_index((c, k, a), shape[::-1])
        order = np.argsort(there)
        return Outliers(there[order], self.values[order])


@dataclass(frozen=True)
class Salient:
    """What of a partly binary weight is not: INT8; and what the rest lies around.

    Attributes:
        mask: bool [A, K, C], where INT8 is.
        codes: int8 [n], in the order of the mask.
        scale: [A, 1, C], of INT8.
        mean: Of the shape and type of the scales of the weight: added to what is binary.
    """

    mask: npt.NDArray[np.bool_]
    codes: npt.NDArray[np.int8]
    scale: np.ndarray
    mean: np.ndarray

    def values(self) -> Floats:
        """float32 [A, K, C], zero where the weight is binary."""
        dense = np.zeros(self.mask.shape, np.float32)
        dense[self.mask] = self.codes
        return dense * self.scale.astype(np.float32)

    def turned(self) -> "Salient":
        """The same of [A, K, C] seen as [C, K, A]."""
        codes = np.zeros(self.mask.shape, np.int8)
        codes[self.mask] = self.codes
        mask, codes, scale, mean = map(turned, (self.mask, codes, self.scale, self.mean))
        return Salient(mask, codes[mask], scale, mean)


@dataclass(frozen=True)
class Solution:
    """Codes and scales of one weight seen as [A, K, C]: K is the axis summed over.

    Attributes:
        format: What the codes are in.
        block: Neighbours along K that share a scale, or None for one scale in all.
        codes: uint8 [A, K, C].
        scale: [A, ceil(K / block), C] in the type it is stored as; [1, 1, 1] for one scale in all.
        tensor_scale: float32 that multiplies every scale (two-level scales), or None.
        zero_point: uint8 codes of the shape of `scale`, or None.
        squared_error: Sum over all weights of (decoded - weight)^2.
        squared_norm: Sum over all weights of weight^2.
        low_rank: Two matrices, float32 [K, r] and [r, C], whose product is added to the decoded weight; or None.
        outliers: A sparse matrix that is added to it; or None.
        salient: What of it is not binary; or None.
    """

    format: Format
    block: int | None
    codes: npt.NDArray[np.uint8]
    scale: np.ndarray
    tensor_scale: np.float32 | None
    zero_point: npt.NDArray[np.uint8] | None
    squared_error: float
    squared_norm: float
    low_rank: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
    outliers: Outliers | None = None
    salient: Salient | None = None

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels; infinite where nothing was lost."""
        if self.squared_error == 0:
            return float("inf")
        return 10 * float(np.log10(max(self.squared_norm, np.finfo(np.float64).tiny) / self.squared_error))

    def decode(self) -> npt.NDArray[np.float32]:
        """The weights that the codes mean, float32 [A, K, C]; without what is added to them."""
        values = self.format.decode(self.codes)
        scale = self.scale.astype(np.float32) * (1 if self.tensor_scale is None else self.tensor_scale)
        rows = np.arange(values.shape[1]) // (self.block or max(values.shape[1], 1))
        if self.zero_point is not None:
            values -= self.format.decode(self.zero_point)[:, rows]
        values = values * scale[:, rows]
        if self.salient is not None:
            mean = self.salient.mean.astype(np.float32)
            values = np.where(self.salient.mask, self.salient.values(), values + mean[:, rows])
        return values

    def turned(self) -> "Solution":
        """The same of [A, K, C] seen as [C, K, A]; without what is of low rank, which knows one K only."""
        zero, sparse = self.zero_point, self.outliers
        return replace(
            self,
            codes=turned(self.codes),
            scale=turned(self.scale),
            zero_point=None if zero is None else turned(zero),
            low_rank=None,
            outliers=None if sparse is None else sparse.turned(self.codes.shape),
            salient=None if self.salient is None else self.salient.turned(),
        )

    def weight(self) -> npt.NDArray[np.float32]:
        """What stands in the place of the weight, float32 [A, K, C]."""
        weight = self.decode()
        if self.outliers is not None:
            weight += self.outliers.dense(weight.shape)
        if self.low_rank is not None:
            weight += self.low_rank[0] @ self.low_rank[1]
        return weight


def turned(array: np.ndarray) -> np.ndarray:
    """[A, K, C] as [C, K, A]."""
    return np.ascontiguousarray(array.transpose(2, 1, 0))
