"""Aqer (ERQ, arXiv 2407.06794, section 3.2): let a weight make up for the error of its inputs, by ridge regression.

A layer behind quantized ones sees inputs Z where the float model sees X. The weight V with the smallest
|XW - ZV|^2 + lambda |V - W|^2 is W + A W with A = (Z'Z + lambda)^-1 Z'(X - Z). GPTQ that rounds V in the place of W
makes up for what went wrong before it, and not only for its own errors.
"""

from typing import Any

import numpy as np

from onnxq.formats.base import Floats
from onnxq.methods.backend import to_host

# Of the mean of the diagonal of Z'Z.
_DAMPING = 0.01
SHARE = np.float32(0.5)
"""How much of A is best applied. All of it is best for this layer on this data; but what it takes from the layer's
inputs is partly chance, and layers behind it pay for that."""


def correction(hessian: np.ndarray, cross: np.ndarray, *, damping: float = _DAMPING, xp: Any = np) -> Floats:
    """A, which times a weight is what is added to it.

    Args:
        hessian: Z'Z, [K, K].
        cross: Z'X, [K, K].
        damping: Lambda, as a share of the mean of the diagonal of Z'Z.
        xp: Array module that computes.

    Returns:
        float32 [K, K]; zeros where the inputs were never active.
    """
    gram = xp.asarray(hessian, xp.float64)
    mean = float(xp.diag(gram).mean()) if len(gram) else 0.0
    if mean <= 0:
        return np.zeros(hessian.shape, np.float32)
    made = xp.linalg.solve(gram + damping * mean * xp.eye(len(gram)), xp.asarray(cross, xp.float64) - gram)
    return to_host(made.astype(xp.float32))
