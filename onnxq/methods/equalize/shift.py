"""LLM-FP4's pre-shifted exponent bias (arXiv 2310.16836, section 4.2): channels are scaled by powers of two.

A small float has octaves to spare: a channel 2^k times smaller than the largest is multiplied by 2^k, as long as the
exponent has that many values. Powers of two change no mantissa, so the float model stays what it is to the bit.
"""

import numpy as np


def scales(absmax: np.ndarray, exponent_bits: int, mantissa_bits: int) -> np.ndarray:
    """2^-k_j with k_j = clip(round(b_j) - round(min b), 0, 2^e - 1), b_j the exponent bias that fits channel j.

    Args:
        absmax: [K] of the activation.
        exponent_bits: Of the format of the activation.
        mantissa_bits: Likewise.
    """
    heard = absmax > 0
    if not heard.any():
        return np.ones(len(absmax))
    top = 2.0**exponent_bits + np.log2(2 - 2.0**-mantissa_bits) - 1
    bias = top - np.log2(np.where(heard, absmax, absmax.max()))
    octaves = np.clip(np.rint(bias) - np.rint(bias.min()), 0, 2**exponent_bits - 1)
    return np.where(heard, 2.0**-octaves, 1.0)
