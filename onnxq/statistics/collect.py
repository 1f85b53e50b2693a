"""Run a model on data and let onnxruntime compute what methods want to know about its activations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnxq.errors import NonFiniteError
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.probe import Tap, runnable
from onnxq.runtime.inputs import inputs_of
from onnxq.runtime.session import run, session
from onnxq.statistics.data import Source
from onnxq.statistics.feeds import feeds_for
from onnxq.statistics.reductions import REDUCTIONS, Kind, Request, merged
from onnxq.statistics.statistics import Statistics


@dataclass(frozen=True)
class Calibration:
    """Data to run a model on.

    Attributes:
        data: As for `feeds_for`: tokens, one array, or one array an input.
        sequence: Tokens in a window, for a stream of tokens.
        samples: Windows or samples at most; None for all.
        batch: Samples run at a time.
        providers: Of onnxruntime.
    """

    data: Source
    sequence: int = 512
    samples: int | None = 128
    batch: int = 4
    providers: Sequence[str] | None = None


# Answers that one session holds at a time; with more, the data runs through several sessions.
BUDGET_BYTES = 512 << 20


def collect(
    model: Model,
    requests: Sequence[Request],
    calibration: Calibration,
    *,
    budget_bytes: int = BUDGET_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Statistics:
    """Answer all requests in as few passes over the data as the budget allows.

    Memory does not grow with the number of samples: each batch leaves only its answers, added up in float64.

    Args:
        model: Not changed.
        requests: Several about one tensor are answered together.
        calibration: The data, and how much of it.
        budget_bytes: Of answers in one pass.
        progress: Called with the samples done and all, over all passes.

    Raises:
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
    """
    answers: dict[tuple[str, Kind], np.ndarray] = {}
    rows: dict[str, int] = {}
    of = calibration
    groups, seen = list(_groups(merged(requests), budget_bytes)), 0
    for number, group in enumerate(groups):
        taps = [tap for request in group for tap in _taps(request, opset_of(model.ir))]
        with runnable(model, taps=taps) as opened:
            running = session(opened, providers=of.providers)
            feeds = feeds_for(of.data, inputs_of(running), sequence=of.sequence, batch=of.batch, limit=of.samples)
            seen = feeds.samples
            names = [tap.output.name for tap in taps]
            for feed in feeds:
                _add(answers, rows, group, run(running, names, feed.inputs))
                if progress is not None:
                    done = min((number * feeds.samples) + feed.first + feed.rows, len(groups) * feeds.samples)
                    progress(done, len(groups) * feeds.samples)
    return Statistics(answers, rows, seen)


def _groups(requests: Sequence[Request], budget_bytes: int) -> Iterator[list[Request]]:
    """Requests whose answers fit the budget together; at least one at a time."""
    group: list[Request] = []
    for request in requests:
        if group and sum(each.size_bytes for each in group) + request.size_bytes > budget_bytes:
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _taps(request: Request, opset: int) -> Iterator[Tap]:
    """Nodes and outputs that answer a request: the count of its rows first, then each kind."""
    base = f"onnxq/{request.tensor}"
    shape, floats, rows, count = (f"{base}/{what}" for what in ("shape", "floats", "rows", "count"))
    yield Tap(
        [
            helper.make_node("Constant", [], [shape], value_ints=[-1, request.channels]),
            helper.make_node("Cast", [request.tensor], [floats], to=onnx.TensorProto.FLOAT),
            helper.make_node("Reshape", [floats, shape], [rows]),
            helper.make_node("Shape", [rows], [count]),
        ],
        helper.make_tensor_value_info(count, onnx.TensorProto.INT64, [2]),
    )
    for kind in request.kinds:
        result = f"{base}/{kind}"
        yield Tap(
            REDUCTIONS[kind].nodes(rows, result, opset),
            helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None),
        )


def _add(
    answers: dict[tuple[str, Kind], np.ndarray],
    rows: dict[str, int],
    group: Sequence[Request],
    results: Sequence[np.ndarray],
) -> None:
    """Combine the answers about one batch with those before."""
    given = iter(results)
    for request in group:
        rows[request.tensor] = rows.get(request.tensor, 0) + int(next(given)[0])
        for kind in request.kinds:
            answer = next(given).astype(np.float64)
            if not np.isfinite(answer).all():
                raise NonFiniteError(f"activation '{request.tensor}' holds NaN or Inf on the calibration data")
            key = (request.tensor, kind)
            answers[key] = REDUCTIONS[kind].combine(answers[key], answer) if key in answers else answer
