"""QLLM (arXiv 2310.08041): channels with outliers are read in several smaller parts, and similar ones as one.

A channel that reaches beyond a threshold is split into T copies of x / T, each with the row of the weight that x had:
the same sum, over a narrower range (section 4.1). To keep the width, pairs of similar channels are merged into their
mean, with the sum of their rows, which is no longer exact (section 4.2).
"""

import numpy as np

THRESHOLDS = 100


def copies(
    absmax: np.ndarray,
    mean_square: np.ndarray,
    weight_square: np.ndarray,
    ratio: float,
    levels: int,
    classes: np.ndarray,
) -> np.ndarray:
    """Into how many copies each channel is split: [K] integers, 1 for one that stays whole.

    Of evenly spaced thresholds that add at most `ratio` K channels, the one is taken with the smallest expected error:
    the activation is rounded in steps of the threshold over `levels`. A channel's copies are rounded alike, so that its
    error grows with their number; what is smaller than a step is lost, and no more than that. (The paper runs the
    quantized block for each threshold instead.)

    Args:
        absmax: [K] of the activation; the same within a class.
        mean_square: [K] mean of X_j squared.
        weight_square: [K] sum of the squares of the rows of all weights.
        ratio: Of channels that may be added.
        levels: Largest integer of the activation, 7 for four bits.
        classes: [K] channels that must be split alike.
    """
    best = np.inf, np.ones(len(absmax), np.int64)
    top = float(absmax.max(initial=0))
    for threshold in top * np.arange(THRESHOLDS, 0, -1) / THRESHOLDS if top > 0 else ():
        # A hair's breadth, so that the largest channel is not split at a threshold that is its own size.
        count = np.maximum(np.ceil(absmax / threshold - 1e-9), 1).astype(np.int64)[classes]
        if (count - 1).sum() > ratio * len(absmax):
            break
        noise = np.minimum((threshold / levels) ** 2 / 12, mean_square / count**2)
        error = float((noise * count**2 * weight_square).sum())
        if error < best[0]:
            best = error, count
    return best[1]


def pairs(hessian: np.ndarray, weights: list[np.ndarray], free: np.ndarray, count: int) -> np.ndarray:
    """Pairs of channels that are merged: [n, 2], at most `count`, each channel in one pair at most.

    The free channels are dealt out in turn into two halves; a channel of the first goes with that of the second for
    which E (x_i - x_j)^2 |W_i - W_j|^2 / 4, the error of the outputs, is smallest; the cheapest pairs are merged.

    Args:
        hessian: [K, K] X'X.
        weights: The weights [K, C].
        free: [K] whether a channel may be merged.
        count: Pairs wanted.
    """
    channels = np.flatnonzero(free)
    ones, others = channels[::2], channels[1::2]
    if not count or not len(others):
        return np.empty((0, 2), np.int64)
    gram = sum((weight.astype(np.float64) @ weight.T.astype(np.float64) for weight in weights), np.zeros_like(hessian))

    def apart(moments: np.ndarray) -> np.ndarray:
        energy = np.diag(moments)
        found: np.ndarray = energy[ones, None] + energy[None, others] - 2 * moments[np.ix_(ones, others)]
        return found.clip(min=0)

    cost = apart(hessian) * apart(gram)
    found: list[tuple[int, int]] = []
    taken = np.zeros(len(others), bool)
    for one in np.argsort(cost.min(axis=1), kind="stable"):
        if len(found) == count:
            break
        other = int(np.argmin(np.where(taken, np.inf, cost[one])))
        if not taken[other]:
            taken[other] = True
            found.append((int(ones[one]), int(others[other])))
    return np.array(found, np.int64).reshape(-1, 2)
