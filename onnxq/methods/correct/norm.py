"""Norm tweaking in closed form: scale the channels that a norm gives to the layers behind it, once these are rounded.

Norm Tweaking (arXiv 2309.02784) trains gamma on the distance of channel means and variances. The error of the layers
themselves is a quadratic of the factors s, as X diag(s) Q is linear in them, so its minimum is the solution of K
equations. Only behind GPTQ: what plain rounding leaves is noise in all directions, and fitting it can hurt.
"""

from collections.abc import Sequence

import numpy as np

from onnxq.formats.base import Floats

# Of the mean of the diagonal of the equations: factors stay near one where little depends on them.
_DAMPING = 0.01


def factors(
    hessian: np.ndarray, weights: Sequence[np.ndarray], rounded: Sequence[np.ndarray], *, damping: float = _DAMPING
) -> Floats:
    """What gamma (and beta) are multiplied with: s with the smallest sum of |X W - X diag(s) Q|^2, damped towards one.

    Args:
        hessian: X'X of what the norm gives, [K, K].
        weights: W of all layers that read it, each [K, C of its own].
        rounded: Q in their places.
        damping: As a share of the mean of the diagonal of the equations.

    Returns:
        float32 [K]; ones where the norm never gave anything.
    """
    wide = hessian.astype(np.float64)
    pairs = [(w.astype(np.float64), q.astype(np.float64)) for w, q in zip(weights, rounded, strict=True)]
    left = wide * sum(q @ q.T for _, q in pairs)
    right = np.einsum("kl,lk->k", wide, sum(w @ q.T for w, q in pairs))
    ridge = damping * float(np.diag(left).mean())
    if ridge <= 0:
        return np.ones(len(wide), np.float32)
    found = np.linalg.solve(left + ridge * np.eye(len(wide)), right + ridge)
    return np.asarray(found, np.float32)


def error(
    hessian: np.ndarray, weights: Sequence[np.ndarray], rounded: Sequence[np.ndarray], scale: np.ndarray | None = None
) -> float:
    """The sum of |X W - X diag(s) Q|^2 over the layers; s is one by default."""
    total = 0.0
    for weight, made in zip(weights, rounded, strict=True):
        difference = weight.astype(np.float64) - (made if scale is None else scale[:, None] * made)
        total += float((hessian @ difference * difference).sum())
    return total
