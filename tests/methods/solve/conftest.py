from collections.abc import Callable

import numpy as np
import pytest

from onnxq.formats import get_format, get_scale_type
from onnxq.methods.grid import GridSpec
from onnxq.methods.solution import Solution


def activations(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    """Correlated inputs with a few strong channels."""
    mixed = rng.standard_normal((rows, k)) @ (np.eye(k) + 0.4 * rng.standard_normal((k, k)) / np.sqrt(k))
    return mixed * np.exp(rng.standard_normal(k))


@pytest.fixture
def layer() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """A weight [1, K, C] and H = X'X of inputs."""

    def make(seed: int, k: int, c: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        x = activations(rng, rows, k)
        return rng.standard_normal((1, k, c)).astype(np.float32), x.T @ x

    return make


@pytest.fixture
def spec() -> Callable[..., GridSpec]:
    def make(*names: str, block: int | None = 16, scale: str = "fp32", symmetric: bool | None = None) -> GridSpec:
        chosen = not names[0].startswith("uint") if symmetric is None else symmetric
        return GridSpec([get_format(name) for name in names], block, get_scale_type(scale), chosen)

    return make


@pytest.fixture
def cost() -> Callable[[np.ndarray, Solution, np.ndarray], float]:
    """tr(E'HE) in float64."""

    def of(weight: np.ndarray, solution: Solution, h: np.ndarray) -> float:
        e = solution.decode()[0].astype(np.float64) - weight[0]
        return float(np.einsum("kc,kl,lc->", e, h, e))

    return of
