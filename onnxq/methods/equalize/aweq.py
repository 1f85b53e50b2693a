"""AWEQ (arXiv 2311.01305): a channel takes equal shares of the ranges of the activation and of the weights.

The product of both shares, summed over channels, is largest where they are equal: cross-layer equalization between an
activation and a weight. Reconstructed from the abstract; no code of the authors was at hand.
"""

import numpy as np


def scales(width: np.ndarray, weight_width: np.ndarray) -> np.ndarray:
    """sqrt(r_X / r_W); 1 where a channel or its row is silent.

    Args:
        width: [K] largest minus smallest value of each channel.
        weight_width: [K] largest minus smallest value of each row, over all weights.
    """
    heard = (width > 0) & (weight_width > 0)
    ratio = np.ones(len(width))
    np.divide(width, weight_width, out=ratio, where=heard)
    return np.sqrt(ratio)
