"""Which layers have spikes in their inputs, and the rules that leave these layers alone."""

import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onnxq.errors import NonFiniteError
from onnxq.methods.allocate.spikes import THRESHOLD, exempt, kappa
from onnxq.model.load import Model, load
from onnxq.model.opset import opset_of
from onnxq.model.sites import Weight, find_weights
from onnxq.model.taps import Tap, tapped
from onnxq.passes.calibrate import Reading, readings_of
from onnxq.recipes import Match, Role, Rule
from onnxq.runtime.session import run, session
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.nodes import Nodes


@dataclass(frozen=True)
class Spike:
    """The input of some layers.

    Attributes:
        tensor: Its name.
        kappa: How far its largest value stands out, max |x| / median over tokens of max over channels of |x|.
        largest: Its largest magnitude.
        weights: Names of the weights that are multiplied with it.
        labels: What people call these weights.
        nodes: Names of the nodes that do so; empty for nodes without a name.
        roles: What the weights are for.
        elements: Of these weights.
    """

    tensor: str
    kappa: float
    largest: float
    weights: tuple[str, ...]
    labels: tuple[str, ...]
    nodes: tuple[str, ...]
    roles: tuple[Role, ...]
    elements: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def spikes(model: Model | str | Path, calibration: Calibration) -> tuple[Spike, ...]:
    """Rank the inputs of all layers by their spikes, the largest first.

    Memory holds one number a token and layer. Weights in subgraphs and function bodies are not looked at.

    Args:
        model: A loaded model, or the path of one.
        calibration: What it is run on.

    Raises:
        DataError: The data does not fit the model.
        NonFiniteError: An input is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
    """
    loaded = model if isinstance(model, Model) else load(model)
    readers = readings_of(find_weights(loaded.ir), loaded.ir.graph)
    peaks = _peaks(loaded, list(readers), calibration)
    found = [_spike(reading, found, weights) for (reading, weights), found in zip(readers.items(), peaks, strict=True)]
    return tuple(sorted(found, key=lambda each: -each.kappa))


def skip_rules(found: Sequence[Spike], threshold: float = THRESHOLD) -> tuple[Rule, ...]:
    """Rules that leave layers as they are whose inputs have spikes beyond a threshold, each with its reason."""
    rules = []
    for at in exempt([each.kappa for each in found], threshold):
        spike = found[at]
        names = dict.fromkeys((*spike.weights, *(name for name in spike.nodes if name)))
        match = Match(name=tuple(map(glob.escape, names)), role=tuple(dict.fromkeys(spike.roles)))
        rules.append(Rule(match=match, skip=f"its input has spikes: kappa {spike.kappa:.1f} (limit {threshold:g})"))
    return tuple(rules)


def _peaks(model: Model, readings: Sequence[Reading], calibration: Calibration) -> list[np.ndarray]:
    """For each reading the largest magnitude of each row."""
    taps = [_tap(number, reading, opset_of(model.ir)) for number, reading in enumerate(readings)]
    found: list[list[np.ndarray]] = [[] for _ in readings]
    batches, names = calibration.batches(model), [tap.outputs[0].name for tap in taps]
    with tapped(model) as opened:
        running = session(opened.open(taps), providers=calibration.providers) if taps else None
        for batch in batches:
            # A batch that only takes back what filled up another has nothing new.
            if running is None or batch.weight < 0:
                continue
            for kept, array in zip(found, run(running, names, batch.inputs), strict=True):
                kept.append(array.reshape(-1))
            if calibration.progress is not None:
                calibration.progress(batch.last + 1, max(batches.samples, batch.last + 1))
    return [np.concatenate(each) if each else np.zeros(0, np.float32) for each in found]


def _tap(number: int, reading: Reading, opset: int) -> Tap:
    nodes = Nodes(f"onnxq.peaks/{number}", opset)
    floats = nodes.add("Cast", reading.tensor, to=onnx.TensorProto.FLOAT)
    rows = nodes.add("Abs", reading.view.rows(nodes, floats, reading.channels))
    # A maximum passes over NaN; the difference is 0, or NaN.
    bad = nodes.reduced("ReduceSum", nodes.add("Sub", floats, floats), None)
    peaks = nodes.add("Add", nodes.reduced("ReduceMax", rows, -1), bad)
    return Tap([reading.tensor], nodes.made, [helper.make_tensor_value_info(peaks, onnx.TensorProto.FLOAT, None)])


def _spike(reading: Reading, peaks: np.ndarray, weights: Sequence[Weight]) -> Spike:
    if not np.isfinite(peaks).all():
        raise NonFiniteError(f"activation '{reading.tensor}' holds NaN or Inf on the data")
    return Spike(
        tensor=reading.tensor,
        kappa=kappa(peaks),
        largest=float(peaks.max(initial=0.0)),
        weights=tuple(weight.name for weight in weights),
        labels=tuple(weight.label for weight in weights),
        nodes=tuple(site.node.name or "" for weight in weights for site in weight.sites),
        roles=tuple(weight.role for weight in weights),
        elements=sum(weight.size for weight in weights),
    )
