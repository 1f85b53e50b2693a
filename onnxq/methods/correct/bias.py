"""Bias correction (AWEQ, arXiv 2311.01305; first in arXiv 1906.04721): give back the mean that rounding takes away."""

import numpy as np

from onnxq.formats.base import Floats


def correction(mean: np.ndarray, weight: np.ndarray, rounded: np.ndarray, seen: np.ndarray | None = None) -> Floats:
    """What is added to the bias of a layer, so that what it puts out keeps its mean.

    Args:
        mean: [K], of the inputs that the float layer sees.
        weight: [K, C].
        rounded: [K, C], what stands in its place.
        seen: [K], mean of the inputs that the rounded layer sees, where they are others; what went wrong before the
            layer is then given back here, and must not be given back there as well.

    Returns:
        float32 [C].
    """
    wide = mean.astype(np.float64)
    other = wide if seen is None else seen.astype(np.float64)
    return np.asarray(wide @ weight - other @ rounded, np.float32)
