"""How requests are answered: the nodes that compute answers in the graph, and how those of batches add up."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from onnxq.errors import ModelError, NonFiniteError
from onnxq.model.taps import Tap
from onnxq.statistics.batches import Batch
from onnxq.statistics.nodes import Nodes
from onnxq.statistics.reductions import LIMITS, REDUCTIONS, Given
from onnxq.statistics.requests import Key, Request
from onnxq.statistics.shelf import Shelf

# Of Unique, and of Clip with limits that are inputs.
_OPSET = 11


def answering_tap(number: int, request: Request, opset: int, shelf: Shelf) -> Tap:
    """What answers a request: the shape of its rows, whether all are finite (0, else NaN), and then each kind.

    Raises:
        ModelError: The model is older than the operators that answer.
    """
    if opset < _OPSET:
        raise ModelError(
            f"statistics of activations need opset {_OPSET}, the model has {opset}: use onnx.version_converter first"
        )
    nodes = Nodes(f"onnxq.statistics/{number}", opset)
    floats = nodes.add("Cast", request.tensor, to=onnx.TensorProto.FLOAT)
    rows = request.view.rows(nodes, floats, request.channels)
    names = [nodes.add("Shape", rows), _finite(nodes, floats)]
    reads, other, limits = [request.tensor], None, None
    if request.other:
        name, channels = request.other
        reads.append(name)
        floats = nodes.add("Cast", name, to=onnx.TensorProto.FLOAT)
        other = request.view.rows(nodes, floats, channels)
        names[1] = nodes.add("Add", names[1], _finite(nodes, floats))
    for kind in request.kinds:
        if kind in LIMITS:
            low, high = (shelf.answers[Key(request.tensor, end, request.view.label)] for end in LIMITS[kind])
            limits = (low, high)
    given = Given(rows, request.view.rank, other, limits)
    names += [REDUCTIONS[kind].nodes(nodes, given) for kind in request.kinds if kind != "rows"]
    types = {names[0]: onnx.TensorProto.INT64}
    for name, kind in zip(names[2:], (kind for kind in request.kinds if kind != "rows"), strict=True):
        types[name] = onnx.TensorProto.INT64 if kind in LIMITS else onnx.TensorProto.FLOAT
    outputs = [helper.make_tensor_value_info(each, types.get(each, onnx.TensorProto.FLOAT), None) for each in names]
    return Tap(reads, nodes.made, outputs)


def _finite(nodes: Nodes, floats: str) -> str:
    """0, or NaN if an element is NaN or Inf; maxima of onnxruntime pass over NaN."""
    return nodes.reduced("ReduceSum", nodes.add("Sub", floats, floats), None)


def add_answers(request: Request, batch: Batch, results: Iterator[np.ndarray], shelf: Shelf) -> None:
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
            if request.kinds[0] not in LIMITS:
                shelf.add(key, rows, "sum", batch.weight)
        else:
            shelf.add(key, next(results).reshape(expected), REDUCTIONS[key.kind].merge, batch.weight)


def check_answers(shelf: Shelf) -> None:
    """Raise a NonFiniteError where an answer has left float32."""
    for key, answer in shelf.answers.items():
        if not np.isfinite(answer).all():
            raise NonFiniteError(f"the {key.kind} of activation '{key.tensor}' leaves float32")
