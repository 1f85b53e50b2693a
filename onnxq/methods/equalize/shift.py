"""LLM-FP4's pre-shifted exponent bias (arXiv 2310.16836, section 4.2): channels are scaled by powers of two.

A small float has octaves to spare: a channel 2^k times smaller than the largest is multiplied by 2^k, as long as the
exponent has that many values. Powers of two change no mantissa, so the float model stays what it is to the bit.
"""

import numpy as np


def scales(absmax: np.ndarray, exponent_bits: int) -> np.ndarray:
    """2^-k_j with k_j = clip(floor(log2(max / max_j)), 0, 2^e - 1); 1 for a silent channel.

    The authors round the exponents instead, and search the scale of the whole tensor afterwards: a channel can come to
    lie beyond the largest, and stretch the range of all.

    Args:
        absmax: [K] of the activation.
        exponent_bits: Of the format of the activation.
    """
    heard = absmax > 0
    ratio = np.ones(len(absmax))
    np.divide(absmax.max(initial=0), absmax, out=ratio, where=heard)
    octaves: np.ndarray = np.clip(np.floor(np.log2(ratio)), 0, 2**exponent_bits - 1)
    return 2.0**-octaves
