"""Run a model on data and let onnxruntime compute what methods want to know about its activations."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from onnxq.errors import DataError, NonFiniteError
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.taps import Tap, Tapped, tapped
from onnxq.runtime.session import run, session
from onnxq.statistics.batches import Batch, Batches
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.nodes import Nodes
from onnxq.statistics.reductions import REDUCTIONS, Given
from onnxq.statistics.requests import Key, Request, grouped, merged
from onnxq.statistics.shelf import Shelf
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import ALL, LAST

__all__ = ["BUDGET_BYTES", "Calibration", "collect"]

# Answers that one session holds at a time; with more, the data runs through several sessions.
BUDGET_BYTES = 512 << 20


def collect(
    model: Model, requests: Sequence[Request], calibration: Calibration, *, budget_bytes: int = BUDGET_BYTES
) -> Statistics:
    """Answer all requests in as few passes over the data as the budget allows.

    Memory does not grow with the number of samples: each batch leaves only its answers, added up in float64.
    Histograms take a second pass, once the smallest and largest values are known.

    Args:
        model: Not changed.
        requests: Several about one tensor are answered together.
        calibration: The data, and how much of it.
        budget_bytes: Of answers in one pass.

    Raises:
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
        SessionError: Onnxruntime cannot load or run the model.
        OutputError: A temporary file cannot be written.
    """
    wanted = merged(requests)
    later = [replace(each, kinds=("histogram",)) for each in wanted if "histogram" in each.kinds]
    first = [replace(each, kinds=tuple(kind for kind in each.kinds if kind != "histogram")) for each in wanted]
    groups = [*grouped(first, budget_bytes), *grouped(later, budget_bytes)]
    batches = calibration.batches(model)
    if batches.once and len(groups) > 1:
        raise DataError(
            f"the data can be gone through only once, and these statistics take {len(groups)} passes: give a list of "
            "feeds, or an object that begins anew with each iteration"
        )
    shelf = Shelf(8 * sum(math.prod(shape) for each in wanted for shape in each.keys.values()))
    with tapped(model) as opened:
        for number, group in enumerate(groups):
            # A function of its own, so that no session outlives its pass, or what it was opened from.
            _run(opened, group, shelf, opset_of(model.ir), calibration, batches, (number, len(groups)))
    for key, answer in shelf.answers.items():
        if not np.isfinite(answer).all():
            raise NonFiniteError(f"the {key.kind} of activation '{key.tensor}' leaves float32")
    return Statistics(shelf.answers, batches.samples, calibration.is_synthetic)


def _run(
    opened: Tapped,
    group: Sequence[Request],
    shelf: Shelf,
    opset: int,
    calibration: Calibration,
    batches: Batches,
    number_of: tuple[int, int],
) -> None:
    """One pass over the data."""
    taps = [_tap(at, each, opset, shelf) for at, each in enumerate(group)]
    running = session(opened.open(taps), providers=calibration.providers)
    names = [output.name for tap in taps for output in tap.outputs]
    for batch in batches:
        results = iter(run(running, names, batch.inputs))
        for request in group:
            _add(request, batch, results, shelf)
        if calibration.progress is not None:
            # How many samples an iterable has is not known before its end.
            number, passes = number_of
            total = max(batches.samples, batch.last + 1)
            calibration.progress(number * total + batch.last + 1, passes * total)


def _tap(number: int, request: Request, opset: int, shelf: Shelf) -> Tap:
    """What answers a request: the shape of its rows, whether all are finite (0, else NaN), and then each kind."""
    nodes = Nodes(f"onnxq.statistics/{number}", opset)
    floats = nodes.add("Cast", request.tensor, to=onnx.TensorProto.FLOAT)
    rows = request.view.rows(nodes, floats, request.channels)
    names = [nodes.add("Shape", rows), _finite(nodes, floats)]
    reads, other, limits = [request.tensor], None, None
    if request.other:
        name, channels = request.other
        reads.append(name)
        floats = nodes.add("Cast", name, to=onnx.TensorProto.FLOAT)
        other = LAST.rows(nodes, floats, channels)
        names[1] = nodes.add("Add", names[1], _finite(nodes, floats))
    if "histogram" in request.kinds:
        low, high = (shelf.answers[Key(request.tensor, kind, ALL.label)] for kind in ("min", "max"))
        limits = (float(low), float(high))
    given = Given(rows, request.view.rank, other, limits)
    names += [REDUCTIONS[kind].nodes(nodes, given) for kind in request.kinds if kind != "rows"]
    types = {names[0]: onnx.TensorProto.INT64}
    for name, kind in zip(names[2:], (kind for kind in request.kinds if kind != "rows"), strict=True):
        types[name] = onnx.TensorProto.INT64 if kind == "histogram" else onnx.TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(each, types.get(each, onnx.TensorProto.FLOAT), None) for each in names]
    return Tap(reads, nodes.made, outputs)


def _finite(nodes: Nodes, floats: str) -> str:
    """0, or NaN if an element is NaN or Inf; maxima of onnxruntime pass over NaN."""
    return nodes.reduced("ReduceSum", nodes.add("Sub", floats, floats), None)


def _add(request: Request, batch: Batch, results: Iterator[np.ndarray], shelf: Shelf) -> None:
    """Combine the answers about one batch with those before."""
    shape, finite = next(results), next(results)
    if np.isnan(finite):
        samples = f"{batch.first} to {batch.last}" if batch.last > batch.first else f"{batch.first}"
        names = f"'{request.tensor}'" + (f" or '{request.other[0]}'" if request.other else "")
        raise NonFiniteError(f"activation {names} holds NaN or Inf on the calibration data, sample {samples}")
    rows = np.asarray(request.view.count(shape.tolist()))
    for key, expected in request.keys.items():
        if key.kind == "rows":
            # A histogram has a pass of its own, and its rows were counted in the first one.
            if request.kinds != ("histogram",):
                shelf.add(key, rows, "sum", batch.weight)
        else:
            shelf.add(key, next(results).reshape(expected), REDUCTIONS[key.kind].merge, batch.weight)
