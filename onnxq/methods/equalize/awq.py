"""AWQ (arXiv 2306.00978): weights that meet large activations are stored larger, and so more exactly."""

from collections.abc import Callable, Sequence

import numpy as np

from onnxq.methods.curvature import Curvature
from onnxq.methods.equalize.ties import tied

STEPS = 20


def scales(
    mean_abs: np.ndarray,
    curvature: Curvature,
    weights: Sequence[np.ndarray],
    rounded: Sequence[Callable[[np.ndarray], np.ndarray]],
    classes: np.ndarray,
) -> tuple[np.ndarray, float]:
    """mean|X_j|^a for that a of 0, 1/20 … 19/20 with which the rounded weights leave the smallest error.

    The error is that of the outputs, (Q(s W) / s - W)' H (Q(s W) / s - W). With a = 0 nothing is scaled, so the result
    is never worse than plain rounding.

    Args:
        mean_abs: [K] of the activation.
        curvature: Of the activation.
        weights: float32 [K, C], all that it is multiplied with.
        rounded: For each weight what its quantizer makes of a scaled one.
        classes: [K] channels that share a scale.

    Returns:
        The scales [K], and the exponent a.
    """
    best = np.inf, np.ones(len(mean_abs)), 0.0
    shared = np.maximum(tied(mean_abs, classes), 1e-12)
    for exponent in np.arange(STEPS) / STEPS:
        scale = np.maximum(shared**exponent, 1e-4)
        scale /= np.sqrt(scale.max() * scale.min())
        column = scale.astype(np.float32)[:, None]
        error = sum(
            curvature.error(quantized(weight * column) / column - weight)
            for weight, quantized in zip(weights, rounded, strict=True)
        )
        if error < best[0]:
            best = error, scale, float(exponent)
    return best[1], best[2]
