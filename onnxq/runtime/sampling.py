"""Choose the next token from a language model's scores."""

import numpy as np
from numpy.typing import NDArray


def next_token(
    logits: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> int:
    """The token with the highest score, or one drawn at random.

    Args:
        logits: [vocabulary] finite scores.
        rng: where chance comes from.
        temperature: 0 takes the highest score; above, scores are divided by it before the softmax.
        top_k: draw from the k highest scores only; 0 for all.
        top_p: draw from the fewest tokens whose probabilities add up to at least this (Holtzman et al. 2020, nucleus
            sampling); 1 for all.
    """
    if temperature == 0.0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: top_k or None]
    scaled = (logits[order] - logits[order[0]]) / temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    # A token is kept if what comes before it has not reached top_p yet, so that the first always is.
    kept = np.cumsum(probabilities) - probabilities < top_p
    probabilities = probabilities[kept] / probabilities[kept].sum()
    return int(order[: len(probabilities)][rng.choice(len(probabilities), p=probabilities)])
