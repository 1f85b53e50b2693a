"""Run a model on data and let onnxruntime compute what methods want to know about its activations."""

import math
from collections.abc import Sequence
from dataclasses import replace

from onnxq.errors import DataError
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.taps import Tapped, tapped
from onnxq.runtime.session import run, session
from onnxq.statistics.answers import add_answers, answering_tap, check_answers
from onnxq.statistics.batches import Batches
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.reductions import LIMITS
from onnxq.statistics.requests import Request, grouped, merged
from onnxq.statistics.shelf import Shelf
from onnxq.statistics.statistics import Statistics

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
    later = [replace(each, kinds=(kind,)) for each in wanted for kind in LIMITS if kind in each.kinds]
    first = [replace(each, kinds=tuple(kind for kind in each.kinds if kind not in LIMITS)) for each in wanted]
    groups = [group for part in (first, later) for group in grouped(part, lambda each: each.size_bytes, budget_bytes)]
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
    check_answers(shelf)
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
    taps = [answering_tap(at, each, opset, shelf) for at, each in enumerate(group)]
    running = session(opened.open(taps), providers=calibration.providers)
    names = [output.name for tap in taps for output in tap.outputs]
    for batch in batches:
        with calibration.running():
            results = iter(run(running, names, batch.inputs))
        for request in group:
            add_answers(request, batch, results, shelf)
        if calibration.progress is not None:
            # How many samples an iterable has is not known before its end.
            number, passes = number_of
            total = max(batches.samples, batch.last + 1)
            calibration.progress(number * total + batch.last + 1, passes * total)
