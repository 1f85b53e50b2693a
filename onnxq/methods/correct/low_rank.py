"""Low-rank compensation: two thin matrices beside a rounded weight, which give back the most of what rounding took.

LQER (arXiv 2402.02446) and QERA (arXiv 2410.06040): the rank-r matrix B with the smallest |X (E - B)|^2, E = W - Q,
comes from the singular vectors of H^(1/2) E.
"""

import numpy as np

from onnxq.errors import UsageError
from onnxq.formats.base import Floats

# Of the mean of the diagonal of H.
_DAMPING = 1e-3


def factors(
    difference: np.ndarray, hessian: np.ndarray | None, rank: int, *, damping: float = _DAMPING
) -> tuple[Floats, Floats]:
    """Two matrices whose product stands for what rounding took.

    Args:
        difference: [K, C]: E, the weight less what stands in its place.
        hessian: X'X of the layer's inputs, [K, K]; None to weigh all inputs alike.
        rank: At least 1; no more than the smaller of K and C is used.
        damping: Added to H, as a share of the mean of its diagonal, so that inputs that were silent count a little.

    Returns:
        float32 [K, r] and [r, C].

    Raises:
        UsageError: The rank is not positive.
    """
    if rank < 1:
        raise UsageError(f"a compensation of rank {rank} is none: 1 or more")
    wide = difference.astype(np.float64)
    if hessian is None:
        root = inverse = np.eye(len(wide))
    else:
        energies, directions = np.linalg.eigh(hessian.astype(np.float64))
        energies = np.maximum(energies, 0) + max(damping * float(np.diag(hessian).mean()), 1e-30)
        root = directions * np.sqrt(energies) @ directions.T
        inverse = directions / np.sqrt(energies) @ directions.T
    u, s, vt = np.linalg.svd(root @ wide, full_matrices=False)
    # The singular values are shared, so that both matrices are of one size when they are stored in few bits.
    half = np.sqrt(s[:rank])
    return np.asarray(inverse @ u[:, :rank] * half, np.float32), np.asarray(half[:, None] * vt[:rank], np.float32)
