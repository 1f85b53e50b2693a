"""Inputs of layers with spikes: a few values so large that one scale for all tokens leaves nothing of the others.

"Precision Where It Matters" (arXiv 2504.21553) finds them in a handful of projections of language models, and keeps
these in higher precision while all others are quantized.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Beyond it, quantizing the input with one scale leaves most tokens fewer than 12 steps of 8 bits.
THRESHOLD = 20.0


def kappa(peaks: npt.ArrayLike) -> float:
    """How far the largest value of an activation stands out: max |x| / median over tokens of max over channels of |x|.

    Args:
        peaks: [tokens] the largest magnitude of each token.

    Returns:
        1 or more; 1 where all are zero, infinite where only the median is.
    """
    found = np.asarray(peaks, np.float64)
    if not found.size or not (largest := float(found.max())):
        return 1.0
    middle = float(np.median(found))
    return largest / middle if middle else float("inf")


def exempt(kappas: Sequence[float], threshold: float = THRESHOLD) -> list[int]:
    """Numbers of the layers that are better left as they are, the one with the largest spikes first."""
    order = np.argsort(-np.asarray(kappas, np.float64), kind="stable")
    return [int(at) for at in order if kappas[at] > threshold]
