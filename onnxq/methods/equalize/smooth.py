"""SmoothQuant (arXiv 2211.10438): activations and weights share the difficulty of their outliers."""

import numpy as np

# Below it a channel counts as silent.
TINY = 1e-5


def scales(absmax: np.ndarray, weight_absmax: np.ndarray, alpha: float) -> np.ndarray:
    """max|X_j|^alpha / max|W_j|^(1 - alpha), section 4 of the paper; 1 where a channel or its row is silent.

    Args:
        absmax: [K] of the activation.
        weight_absmax: [K] of the rows of all weights it is multiplied with.
        alpha: 1 moves the whole range of the activation into the weights, 0 the other way round.
    """
    found = np.maximum(absmax, TINY) ** alpha / np.maximum(weight_absmax, TINY) ** (1 - alpha)
    return np.where((absmax > 0) & (weight_absmax > 0), found, 1.0)


def expected_error(
    scale: np.ndarray,
    absmax: np.ndarray,
    mean_square: np.ndarray,
    weights: list[np.ndarray],
    levels: int,
) -> float:
    """What rounding is expected to cost the products of one activation, squared and summed over a row of outputs.

    Errors of rounding are taken for independent and uniform, the activation with one scale in all, weights with one a
    column; what is smaller than half a step is lost, and no more than that.

    Args:
        scale: [K] of the activation.
        absmax: [K] of the activation.
        mean_square: [K] mean of X_j squared.
        weights: The weights [K, C].
        levels: Largest integer of both, 127 for eight bits.
    """
    step = float((absmax / scale).max(initial=0)) / levels
    noise = np.minimum(step**2 / 12, mean_square / scale**2)
    total = 0.0
    for weight in weights:
        scaled = weight * scale[:, None]
        total += float(noise @ np.square(scaled).sum(axis=1))
        steps = np.abs(scaled).max(axis=0, initial=0) / levels
        total += float(np.square(steps).sum() / 12 * (mean_square / scale**2).sum())
    return total
