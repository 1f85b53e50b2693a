"""Artificial noise of a chosen strength: what a layer bears, apart from any format.

"What Makes Quantization for Large Language Models Hard?" (arXiv 2403.06408) looks at quantization as a perturbation: of
equal power, noise of any distribution does much the same harm, noise on large values less than noise on small ones.
"""

from typing import Literal

import numpy as np

from onnxq.formats.base import Floats

Kind = Literal["gaussian", "uniform", "rademacher", "proportional", "inverse"]
KINDS: tuple[Kind, ...] = ("gaussian", "uniform", "rademacher", "proportional", "inverse")

# Smaller values get the noise of this share of the root mean square, so that `inverse` stays finite.
_FLOOR = 1e-2


def noise(array: Floats, kind: Kind, sqnr_db: float, rng: np.random.Generator) -> Floats:
    """Noise to be added to an array.

    Args:
        array: Float32, any shape.
        kind: Distribution: normal, uniform or of two values, alike for all elements; or normal with a deviation that is
            proportional to the magnitude of the element (`proportional`) or to its inverse (`inverse`).
        sqnr_db: Power of the array over that of the noise, in dB; met exactly.
        rng: Where the numbers come from.

    Returns:
        Float32 of the same shape; zeros where the array is zero.
    """
    power = float(np.square(array, dtype=np.float64).mean()) if array.size else 0.0
    if not power:
        return np.zeros_like(array)
    if kind == "uniform":
        made = rng.random(array.shape, np.float32) - np.float32(0.5)
    elif kind == "rademacher":
        made = rng.integers(0, 2, array.shape).astype(np.float32) - np.float32(0.5)
    else:
        made = rng.standard_normal(array.shape, np.float32)
    if kind == "proportional":
        made *= np.abs(array)
    elif kind == "inverse":
        made /= np.maximum(np.abs(array), np.float32(_FLOOR * power**0.5))
    wanted = power * 10.0 ** (-sqnr_db / 10)
    made *= np.float32((wanted / float(np.square(made, dtype=np.float64).mean())) ** 0.5)
    return made
