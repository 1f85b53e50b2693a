"""`Curvature`: how much each error of a weight costs, from H = X'X of the inputs of its layer."""

import threading
from typing import Any

import numpy as np

from onnxq.errors import NonFiniteError
from onnxq.formats.base import Floats
from onnxq.methods.backend import to_host

Feedback = tuple[np.ndarray, Floats, Floats]

# Ten times the damping, at most so often, until H can be factored.
_ATTEMPTS = 6


class Curvature:
    """H = X'X of a layer's inputs X, scaled to a diagonal of mean one; e'He is the squared error of the layer's output.

    Several weights that read one tensor share one, and with it the factorization, which is kept.

    Attributes:
        matrix: float32 [K, K].
        energy: float32 [K], its diagonal; zero where a channel was never active.
        correction: float32 [K, K], by which weights make up for errors of their inputs (see `aqer`), or None.
    """

    def __init__(self, matrix: np.ndarray, correction: Floats | None = None) -> None:
        """Take H, any positive multiple of it, any float type.

        Raises:
            NonFiniteError: It holds NaN or Inf.
        """
        if not np.isfinite(matrix).all():
            raise NonFiniteError("the statistics hold NaN or Inf")
        mean = float(np.diag(matrix).mean()) if len(matrix) else 0.0
        scaled = matrix / mean if mean > 0 else matrix
        self.matrix: Floats = scaled.astype(np.float32, copy=False)
        self.energy: Floats = np.diag(self.matrix).copy()
        self.correction = correction
        self._kept: dict[tuple[bool, float], Feedback] = {}
        self._lock = threading.Lock()

    def error(self, difference: Any, xp: Any = np) -> float:
        """The sum of e'He over the columns e of a difference [K, C] between two weights."""
        return float((xp.asarray(self.matrix) @ difference * difference).sum(dtype=xp.float64))

    def feedback(self, *, act_order: bool, damping: float, xp: Any = np) -> Feedback:
        """What the errors of earlier channels mean for later ones, and what an error that is left costs.

        With H = R D R', R upper triangular with ones on its diagonal, e'He is the sum over k of D_k times the square of
        e_k + sum over i < k of R_ik e_i: whoever rounds channel k sees the errors before it and can cancel their sum.

        Args:
            act_order: Channels by falling energy; False: as they are stored.
            damping: Share of the mean of the diagonal that is added to it; more where H cannot be factored.
            xp: Array module that factors.

        Returns:
            The order, [K] integers; R in that order, float32 [K, K]; D as the channels are stored, float32 [K].
        """
        with self._lock:
            if (act_order, damping) not in self._kept:
                order = np.argsort(-self.energy, kind="stable") if act_order else np.arange(len(self.energy))
                upper, left = _factor(self.damped(order, 0, xp), damping, xp)
                costs = np.empty_like(left)
                costs[order] = left
                self._kept[act_order, damping] = order, upper, costs
            return self._kept[act_order, damping]

    def damped(self, order: np.ndarray, damping: float, xp: Any = np) -> Any:
        """H in an order, damped, float64; a channel that was never active stands by itself."""
        there = xp.asarray(order)
        wide = xp.asarray(self.matrix)[there[:, None], there].astype(xp.float64)
        diagonal, at = xp.diag(wide).copy(), xp.arange(len(wide))
        wide[at, at] = xp.where(diagonal > 0, diagonal, 1) + damping
        return wide


def _factor(h: Any, damping: float, xp: Any) -> tuple[Floats, Floats]:
    """R and D of H = R D R'; the unit matrix, which is rounding to nearest, where H cannot be factored at all."""
    # The Cholesky factor of the reversed matrix, reversed, is upper triangular.
    turned = xp.ascontiguousarray(h[::-1, ::-1])
    for _ in range(_ATTEMPTS):
        try:
            lower = xp.linalg.cholesky(turned + damping * xp.eye(len(h)))
        except np.linalg.LinAlgError:
            lower = None
        # CuPy gives NaN where numpy raises.
        if lower is not None and bool(xp.isfinite(lower).all()):
            diagonal = xp.diag(lower)
            upper = to_host((lower / diagonal).astype(xp.float32))[::-1, ::-1]
            costs = to_host((diagonal**2).astype(xp.float32))[::-1]
            return np.ascontiguousarray(upper), np.ascontiguousarray(costs)
        damping = max(10 * damping, 1e-8)
    return np.eye(len(h), dtype=np.float32), to_host(xp.diag(h)).astype(np.float32)
