"""Sequential calibration: the statistics of a layer see the layers before it as they will be, already quantized.

The model runs part by part, from one stage of layers to the next. What a part makes for those after it is kept, so all
parts together cost one pass over the data, however many stages there are.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxq.methods.backend import get_module
from onnxq.model.constants import undo_views, view_shape
from onnxq.model.digest import model_digest
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.segment import segment, standing_in
from onnxq.model.sites import Weight
from onnxq.model.taps import Tap
from onnxq.passes.activations import BUDGET_BYTES, Activations
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.plan import Plan
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import Work, in_order, solve, work_of
from onnxq.passes.stages import Layer, Stage, stages
from onnxq.recipes import NonFinitePolicy
from onnxq.runtime.session import run, session
from onnxq.statistics.answers import add_answers, answering_tap, check_answers
from onnxq.statistics.batches import Batch
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.requests import Request, merged
from onnxq.statistics.shelf import Shelf
from onnxq.statistics.statistics import Statistics


def solve_in_sequence(
    model: Model,
    plan: Plan,
    weights: Sequence[Weight],
    calibration: Calibration,
    folder: Path,
    *,
    non_finite: NonFinitePolicy = "error",
    device: str = "cpu",
    threads: int | None = None,
    budget_bytes: int = BUDGET_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Solutions:
    """Solve all weights that a plan quantizes, each stage on statistics behind the solved stages before it.

    Args:
        model: Not changed.
        plan: From `make_plan` on this model.
        weights: From `make_plan`.
        calibration: The data.
        folder: Where solutions are kept: empty, new, or of an interrupted run on the same model, plan and data, which
            goes on where it was.
        non_finite: What to do with a weight that holds NaN or Inf.
        device: `cpu` or `cuda`: where weights are solved.
        threads: How many weights are solved at a time; by default as many as there are processors.
        budget_bytes: Of activations in memory; more lie in temporary files.
        progress: Called with stages done and all.

    Raises:
        DataError: The data does not fit the model, or the folder is another run's.
        NonFiniteError: A weight or an activation holds NaN or Inf.
        OutputError: The folder or a temporary file cannot be written.
        SessionError: Onnxruntime cannot load or run a part of the model.
    """
    xp = get_module(device)
    work = work_of(model.ir.graph, plan, weights)
    solutions = Solutions(folder, _run(model, plan, calibration, non_finite))
    layers = [
        Layer(
            item.measured.tensor if item.measured else None,
            tuple(site.node for site in item.weight.sites),
        )
        for item in work
    ]
    made = stages(model.ir.graph, layers)
    staged = {number for stage in made for number in stage.layers}
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(threads))
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-")))
        parts = _Parts(model, work, solutions, calibration, Activations(temporary, budget_bytes))

        def finish(numbers: Sequence[int], statistics: Statistics | None) -> None:
            curvatures = Curvatures(statistics)
            left = [number for number in numbers if not solutions.has(number)]
            calls = [partial(solve, work[at], non_finite, curvatures.of(work[at].measured), xp) for at in left]
            for number, solution in zip(left, in_order(executor, calls), strict=True):
                solutions.put(number, solution)

        finish([number for number in range(len(work)) if number not in staged], None)
        for done, stage in enumerate(made):
            if all(solutions.has(number) for later in made[done:] for number in later.layers):
                break
            finish(stage.layers, parts.run(stage))
            if progress is not None:
                progress(done + 1, len(made))
    return solutions


def _run(model: Model, plan: Plan, calibration: Calibration, policy: NonFinitePolicy) -> dict[str, str]:
    """What solutions depend on."""
    decisions = [(each.weight, each.spec.model_dump_json()) for each in plan if each.spec is not None]
    return {
        "model": model_digest(model),
        "plan": hashlib.sha256(repr((decisions, policy)).encode()).hexdigest(),
        "data": calibration.digest(model),
    }


class _Parts:
    """Runs a model part by part, each with the solved weights in the place of their originals."""

    def __init__(
        self, model: Model, work: Sequence[Work], solutions: Solutions, calibration: Calibration, kept: Activations
    ) -> None:
        self._model = model
        self._work = work
        self._solutions = solutions
        self._calibration = calibration
        self._kept = kept
        self._batches: list[Batch] = []
        self._samples = 0

    def run(self, stage: Stage) -> Statistics | None:
        """Run the part of a stage; the statistics of its layers, or None where all of them are solved."""
        if not self._batches:
            self._feed(stage)
        wanted = [self._work[at].measured for at in stage.layers if not self._solutions.has(at)]
        requests = merged(each.request("hessian") for each in wanted if each)
        shelf = Shelf(2 * sum(each.size_bytes for each in requests))
        known = self._kept.get(0, stage.given)
        made = [name for name in stage.kept if name not in self._kept.names(0)]
        opset = opset_of(self._model.ir)
        taps = [answering_tap(at, each, opset, shelf) for at, each in enumerate(requests)]
        # Onnxruntime finds out the types of outputs by itself.
        taps.append(Tap(made, [], [onnx.ValueInfoProto(name=name) for name in made]))
        outputs = [each.name for tap in taps for each in tap.outputs]
        given = {name: _input(name, array) for name, array in known.items()}
        with standing_in(self._model, self._solved(stage)), segment(self._model, given, taps) as opened:
            self._through(opened, outputs, stage, requests, shelf)
        check_answers(shelf)
        return Statistics(shelf.answers, self._samples, self._calibration.is_synthetic) if requests else None

    def _feed(self, stage: Stage) -> None:
        """Keep what the first part and those after it read of the data."""
        for batch in self._calibration.batches(self._model):
            wanted = {*stage.given, *stage.kept}
            self._kept.put(len(self._batches), {name: each for name, each in batch.inputs.items() if name in wanted})
            self._batches.append(replace(batch, inputs={}))
            self._samples = max(self._samples, batch.last + 1)

    def _solved(self, stage: Stage) -> list[tuple[ir.TensorProtocol, np.ndarray]]:
        """The weights that run in a part and are solved, as the solutions mean them."""
        found = []
        for number in stage.applied:
            if self._solutions.has(number) and not isinstance(solution := self._solutions.get(number), str):
                weight = self._work[number].weight
                found.append((weight.tensor, as_stored(weight, solution.decode())))
        return found

    def _through(
        self, opened: bytes | str, outputs: Sequence[str], stage: Stage, requests: Sequence[Request], shelf: Shelf
    ) -> None:
        """All batches through one part."""
        # Without outputs there is nothing to run, and no session of it.
        running = session(opened, providers=self._calibration.providers) if outputs else None
        made = [name for name in stage.kept if name not in self._kept.names(0)]
        for number, batch in enumerate(self._batches):
            if running is not None:
                results = run(running, outputs, self._kept.get(number, stage.given))
                answers = iter(results[: len(results) - len(made)])
                for request in requests:
                    add_answers(request, batch, answers, shelf)
                self._kept.put(number, dict(zip(made, results[len(results) - len(made) :], strict=True)))
            self._kept.keep(number, stage.kept)


def _input(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """An input that takes arrays like this one, of any size."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)


def as_stored(weight: Weight, decoded: np.ndarray) -> np.ndarray:
    """Numbers in the shape in which operators read a weight, in the shape and type in which it is stored."""
    array = decoded.reshape(view_shape(weight.tensor.shape.numpy(), weight.steps))
    return undo_views(array.astype(weight.tensor.dtype.numpy()), weight.tensor.shape.numpy(), weight.steps)
