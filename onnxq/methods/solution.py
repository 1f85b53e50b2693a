"""`Solution`: what a solver gives back for one weight."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.formats import Format


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
        return values * scale[:, rows]

    def weight(self) -> npt.NDArray[np.float32]:
        """What stands in the place of the weight, float32 [A, K, C]."""
        decoded = self.decode()
        return decoded if self.low_rank is None else decoded + self.low_rank[0] @ self.low_rank[1]
