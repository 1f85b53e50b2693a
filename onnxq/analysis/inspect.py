"""What is in a model: operators, weights by type and size, and how well each format would fit them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.errors import NonFiniteError
from onnxq.formats import get_format
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import rtn
from onnxq.model.load import Model, load
from onnxq.model.operators import operator_name
from onnxq.model.scopes import nodes
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.plan import grouping
from onnxq.recipes import load_recipe

# Recipes whose fit is measured; each is one quantization people would choose for a whole model.
_RECIPES = ("fp6-e2m3", "fp6-e3m2", "mxfp6", "fp4", "mxfp4", "nvfp4", "int8", "int4", "int3", "int2")
# Rows of a large weight that are enough to tell formats apart.
_SAMPLED_ELEMENTS = 1 << 18
# Stands for infinity where nothing is lost: more than float32 can tell.
_LOSSLESS_DB = 200.0


@dataclass(frozen=True)
class WeightFit:
    """One weight.

    Attributes:
        name: Of the constant.
        op: Type of the operator that reads it.
        role: What it is for.
        shape: As the operator reads it.
        dtype: As it is stored.
        size_bytes: As it is stored.
        obstacle: Why it cannot be quantized, or None.
        absmax: Largest magnitude, of the sampled part; None where there is an obstacle.
        kurtosis: Heaviness of the tails of the sampled part: 3 for Gaussian weights, more for outliers.
        sqnr_db: For each recipe the signal to quantization noise that rounding to nearest leaves, in dB.
    """

    name: str
    op: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    obstacle: str | None
    absmax: float | None = None
    kurtosis: float | None = None
    sqnr_db: dict[str, float] | None = None


@dataclass(frozen=True)
class Inspection:
    """A model.

    Attributes:
        path: The file.
        size_bytes: With external data.
        external: Whether it has external data.
        ir_version: Of the file format.
        opsets: Version of each operator domain.
        inputs: Name, type and shape of each input.
        outputs: Likewise.
        operators: How often each operator stands in the graph, subgraphs and functions, the most frequent first.
        weights: Every float constant of two or more dimensions.
    """

    path: str | None
    size_bytes: int
    external: bool
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    weights: tuple[WeightFit, ...]

    def mean_sqnr_db(self) -> dict[str, float]:
        """For each recipe the ratio over all weights that can be quantized, each weight's noise relative to itself."""
        fits = [weight.sqnr_db for weight in self.weights if weight.sqnr_db]
        means = {}
        for recipe in _RECIPES:
            noise = [10 ** (-fit[recipe] / 10) for fit in fits if recipe in fit]
            if noise and (mean := float(np.mean(noise))) > 0:
                means[recipe] = -10 * float(np.log10(mean))
        return means

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        return asdict(self) | {"mean_sqnr_db": self.mean_sqnr_db()}


def inspect(
    model: str | Path | Model, *, fit: bool = True, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Look into a model without changing it.

    Args:
        model: An .onnx file, or a loaded model.
        fit: Measure how well each format fits each weight; large weights are sampled evenly.
        progress: Called with the weights done and their number.

    Raises:
        ModelError, UnsafeModelError: The model is broken, or refers to data it must not reach.
    """
    loaded = model if isinstance(model, Model) else load(model)
    weights = find_weights(loaded.ir)
    fits = []
    for number, weight in enumerate(weights, 1):
        fits.append(_fit(weight, measure=fit))
        if progress is not None:
            progress(number, len(weights))
    graph = loaded.ir.graph
    operators = Counter(operator_name(node) for node in nodes(loaded.ir))
    return Inspection(
        path=str(loaded.path) if loaded.path else None,
        size_bytes=loaded.size_bytes,
        external=loaded.external,
        ir_version=loaded.ir.ir_version,
        opsets={domain or "ai.onnx": number for domain, number in graph.opset_imports.items()},
        inputs=_described(graph.inputs),
        outputs=_described(graph.outputs),
        operators=dict(operators.most_common()),
        weights=tuple(fits),
    )


def _described(values: Sequence[ir.Value]) -> tuple[str, ...]:
    """`input_ids INT64[batch,sequence]` for each value."""
    return tuple(
        f"{value.name} {value.dtype or '?'}{value.shape if value.shape is not None else ''}" for value in values
    )


def _fit(weight: Weight, *, measure: bool) -> WeightFit:
    plain = WeightFit(
        name=weight.name,
        op=weight.op,
        role=weight.role,
        shape=weight.shape,
        dtype=str(weight.tensor.dtype),
        size_bytes=weight.size_bytes,
        obstacle=weight.obstacle,
    )
    if weight.obstacle is not None or weight.size == 0 or not measure:
        return plain
    sample = _sample(weight)
    scores = {}
    for recipe in _RECIPES:
        spec = load_recipe(recipe).rules[0].weight
        if spec is None:
            continue
        group = grouping(weight, spec)
        formats = [get_format(name) for name in spec.format]
        try:
            solution = rtn.solve(sample, GridSpec(formats, group.block, group.scale_type, spec.symmetric))
        except NonFiniteError as error:
            return replace(plain, obstacle=f"{error}")
        scores[recipe] = min(solution.sqnr_db, _LOSSLESS_DB)
    centered = sample.astype(np.float64) - sample.mean(dtype=np.float64)
    variance = float((centered**2).mean())
    kurtosis = float((centered**4).mean()) / variance**2 if variance else 0.0
    return replace(plain, absmax=float(np.abs(sample).max()), kurtosis=kurtosis, sqnr_db=scores)


def _sample(weight: Weight) -> np.ndarray:
    """Evenly spaced output channels of a weight, as [A, K, C]; all of a small one."""
    layout = weight.layout
    if layout is None:
        raise ValueError(weight.name)
    array, shape = weight.read(), weight.shape
    matrix = (
        (shape[0], -1, 1) if layout.flatten else (-1, shape[layout.reduction], math.prod(shape[layout.reduction + 1 :]))
    )
    array = array.reshape(matrix)
    step = max(1, weight.size // _SAMPLED_ELEMENTS)
    sampled = array[:, :, ::step] if array.shape[2] > 1 else array[::step]
    return np.ascontiguousarray(sampled, np.float32)
