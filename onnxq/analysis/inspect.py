"""What is in a model: operators, weights by type and size, and how well each format would fit them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.analysis import remedies
from onnxq.analysis.activations import ActivationRange, ranges_of
from onnxq.analysis.stored import StoredWeight, find_stored, is_part
from onnxq.analysis.weights import FORMATS, GRANULARITIES, RECIPES, WeightFit, fit_of
from onnxq.model.load import Model, load
from onnxq.model.operators import operator_name
from onnxq.model.scopes import nodes
from onnxq.model.sites import find_weights
from onnxq.statistics.calibration import Calibration

# What onnxq writes into the metadata of its files begins so.
_OWN = "onnxq."


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
        weights: Every float constant of two or more dimensions, but for scales of quantized ones.
        stored: Every quantized constant, whoever quantized it.
        activations: What is multiplied with the weights; empty without data.
        made_by: What onnxq wrote about the file: version, target, recipe.
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
    stored: tuple[StoredWeight, ...] = ()
    activations: tuple[ActivationRange, ...] = ()
    made_by: dict[str, str] = field(default_factory=dict)

    def mean_sqnr_db(self) -> dict[str, float]:
        """For each recipe the ratio over all weights that can be quantized, each weight's noise relative to itself."""
        means = {name: _mean_db([each.sqnr_db for each in self.weights], name) for name in RECIPES}
        return {name: mean for name, mean in means.items() if mean is not None}

    def granularity_db(self) -> dict[str, dict[str, float]]:
        """The same for each format with each granularity, over the weights that can have it."""
        return {
            kind: {
                name: mean
                for name in GRANULARITIES
                if (mean := _mean_db([each.granularity_db.get(kind, {}) for each in self.weights], name)) is not None
            }
            for kind in (FORMATS if any(each.granularity_db for each in self.weights) else ())
        }

    @property
    def remedies(self) -> dict[str, tuple[str, ...]]:
        """What stands out, by what people call the weight, or the activation and the weight that it meets."""
        found: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for each in self.weights:
            found[each.label] += each.remedies
        for seen in self.activations:
            found[f"{seen.tensor} into {seen.labels[0]}"] += seen.remedies
        return {name: texts for name, texts in found.items() if texts}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        return asdict(self) | {
            "weights": [each.to_dict() for each in self.weights],
            "stored": [each.to_dict() for each in self.stored],
            "mean_sqnr_db": self.mean_sqnr_db(),
            "mean_granularity_db": self.granularity_db(),
        }


def inspect(
    model: str | Path | Model,
    *,
    fit: bool = True,
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Look into a model without changing it.

    Args:
        model: An .onnx file, or a loaded model.
        fit: Measure how the values of each weight lie, and how well each format fits them.
        calibration: Data to run the model on, to look at its activations too.
        progress: Called with the weights done and their number.

    Raises:
        ModelError, UnsafeModelError: The model is broken, or refers to data it must not reach.
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
    """
    loaded = model if isinstance(model, Model) else load(model)
    weights = [each for each in find_weights(loaded.ir) if not is_part(each.source)]
    fits = []
    for number, weight in enumerate(weights, 1):
        found = fit_of(weight, measure=fit)
        fits.append(replace(found, remedies=tuple(remedies.of_weight(found))))
        if progress is not None:
            progress(number, len(weights))
    activations = ranges_of(loaded, weights, calibration) if calibration is not None else []
    graph = loaded.ir.graph
    operators = Counter(operator_name(node) for node in nodes(loaded.ir))
    return Inspection(
        path=str(loaded.path) if loaded.path else None,
        size_bytes=loaded.size_bytes,
        external=loaded.external,
        ir_version=loaded.ir.ir_version,
        opsets=_imports(loaded),
        inputs=_described(graph.inputs),
        outputs=_described(graph.outputs),
        operators=dict(operators.most_common()),
        weights=tuple(fits),
        stored=tuple(find_stored(loaded.ir)),
        activations=tuple(replace(each, remedies=tuple(remedies.of_activation(each))) for each in activations),
        made_by={
            key.removeprefix(_OWN): value for key, value in loaded.ir.metadata_props.items() if key.startswith(_OWN)
        },
    )


def _imports(model: Model) -> dict[str, int]:
    """Versions by domain, as the file has them: loading may add one."""
    if model.source is None:
        return {domain or "ai.onnx": number for domain, number in model.ir.graph.opset_imports.items()}
    return {each.domain or "ai.onnx": each.version for each in model.source.proto.opset_import}


def _described(values: Sequence[ir.Value]) -> tuple[str, ...]:
    """`input_ids INT64[batch,sequence]` for each value."""
    return tuple(
        f"{value.name} {value.dtype or '?'}{value.shape if value.shape is not None else ''}" for value in values
    )


def _mean_db(fits: Sequence[dict[str, float]], name: str) -> float | None:
    """Of all fits that have the name, each weight's noise relative to itself."""
    noise = [10 ** (-fit[name] / 10) for fit in fits if name in fit]
    mean = float(np.mean(noise)) if noise else 0.0
    return -10 * float(np.log10(mean)) if mean > 0 else None
