"""Sequential calibration: the statistics of a layer see the layers before it as they will be, already quantized.

The model runs part by part, from one stage of layers to the next, beside the float model, so that each layer also knows
what it should have seen. What a part makes for those after it is kept, so all parts together cost one pass over the
data and model, however many stages there are.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.model.constants import undo_views, view_shape
from onnxq.model.digest import model_digest
from onnxq.model.load import Model
from onnxq.model.opset import opset_of
from onnxq.model.sites import Weight
from onnxq.model.temporary import temporary_folder
from onnxq.passes.activations import BUDGET_BYTES, Activations
from onnxq.passes.calibrate import float_name
from onnxq.passes.correct import Corrections
from onnxq.passes.flow import Flow
from onnxq.passes.layers import Layers
from onnxq.passes.plan import Plan
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import work_of
from onnxq.passes.stages import Layer, Stage, stages
from onnxq.recipes import NonFinitePolicy
from onnxq.statistics.answers import add_answers, answering_tap, check_answers
from onnxq.statistics.batches import Batch
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.shelf import Shelf
from onnxq.statistics.statistics import Statistics


def solve_in_sequence(
    model: Model,
    plan: Plan,
    weights: Sequence[Weight],
    calibration: Calibration,
    folder: Path,
    *,
    corrections: Corrections | None = None,
    rounded: Mapping[str, str] | None = None,
    non_finite: NonFinitePolicy = "error",
    device: str = "cpu",
    threads: int | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Solutions:
    """Solve all weights that a plan quantizes, each stage on statistics behind the solved stages before it.

    Args:
        model: Not changed.
        plan: From `make_plan` on this model.
        weights: From `make_plan`.
        calibration: The data; its progress is told stages done and all.
        folder: Where solutions are kept: empty, new, or of an interrupted run on the same model, plan and data, which
            goes on where it was.
        corrections: Of this model and plan; takes in what is found. None for none.
        rounded: Activations that are rounded, and what each was before; layers make up for the difference.
        non_finite: What to do with a weight that holds NaN or Inf.
        device: `cpu` or `cuda`: where weights are solved.
        threads: How many weights are solved at a time; by default as many as there are processors.
        budget_bytes: Of activations in memory; more lie in temporary files.

    Raises:
        DataError: The data does not fit the model, or the folder is another run's.
        NonFiniteError: A weight or an activation holds NaN or Inf.
        OutputError: The folder or a temporary file cannot be written.
        SessionError: Onnxruntime cannot load or run a part of the model.
        UsageError: The data can be gone through only once.
    """
    if calibration.batches(model).once:
        raise UsageError(
            "layer by layer the data is gone through more than once: give a list of feeds, or arrays, in place of an "
            "iterator, or sequential=False"
        )
    if corrections is None:
        corrections = Corrections(model, work_of(model.ir.graph, plan, weights), ())
    layers = Layers(
        Solutions(folder, _run(model, plan, calibration, non_finite)),
        corrections,
        float_name=float_name,
        non_finite=non_finite,
        device=device,
        threads=threads,
    )
    readings = [layers.reading(at) for at in range(len(layers.work))]
    made = stages(
        model.ir.graph,
        [
            Layer(reading.tensor if reading else None, tuple(site.node for site in item.weight.sites))
            for reading, item in zip(readings, layers.work, strict=True)
        ],
    )
    staged = {number for stage in made for number in stage.layers}
    layers.finish([number for number in range(len(layers.work)) if number not in staged], None)
    with temporary_folder() as temporary:
        parts = _Parts(model, layers, calibration, (temporary, budget_bytes), rounded)
        for done, stage in enumerate(made):
            left = any(layers.left(later.layers) for later in made[done:])
            layers.finish(stage.layers, parts.run(stage) if left else None)
            if calibration.progress is not None:
                calibration.progress(done + 1, len(made))
    return layers.solutions


def _run(model: Model, plan: Plan, calibration: Calibration, policy: NonFinitePolicy) -> dict[str, str]:
    """What solutions depend on."""
    decisions = [(each.weight, each.spec.model_dump_json()) for each in plan if each.spec is not None]
    decisions += [("correct", each) for each in plan.correct]
    return {
        "model": model_digest(model),
        "plan": hashlib.sha256(repr((decisions, policy)).encode()).hexdigest(),
        "data": calibration.digest(model),
    }


class _Parts:
    """Runs a model part by part, once float and once with the solved weights in the place of their originals."""

    def __init__(
        self,
        model: Model,
        layers: Layers,
        calibration: Calibration,
        room: tuple[Path, int],
        rounded: Mapping[str, str] | None,
    ) -> None:
        self._opset = opset_of(model.ir)
        self._layers = layers
        self._calibration = calibration
        self._aiming = {at for at, each in enumerate(layers.work) if each.aims}
        # The float model runs beside only if some layer makes up for the difference.
        self._beside = bool(self._aiming or layers.corrections.biases)
        folder, budget_bytes = room

        def kept(name: str) -> Activations:
            (folder / name).mkdir()
            return Activations(folder / name, budget_bytes // 2)

        self._float = Flow(model, calibration, kept("float"), rounded)
        self._quantized = Flow(model, calibration, kept("quantized"))

    def run(self, stage: Stage) -> Statistics | None:
        """Run the part of a stage; the statistics of its layers, or None where all of them are solved."""
        layers = self._layers
        wanted = layers.left(stage.layers)
        requests = layers.requests(wanted, self._aiming)
        shelf = Shelf(2 * sum(each.size_bytes for each in requests))
        taps = [answering_tap(at, each, self._opset, shelf) for at, each in enumerate(requests)]
        readings = {reading.tensor for at in wanted if (reading := layers.reading(at)) is not None}
        asked = {name for each in requests for name in (each.tensor, *(each.other or ())[:1])}
        floats = {name: tensor for tensor in readings if (name := float_name(tensor)) in asked}
        if self._beside:
            self._float.run(stage, [*floats.values()])

        def beside(number: int) -> dict[str, np.ndarray]:
            found = self._float.values(number, [*floats.values()])
            return {name: found[tensor] for name, tensor in floats.items()}

        def take(batch: Batch, results: Iterator[np.ndarray]) -> None:
            for request in requests:
                add_answers(request, batch, results, shelf)

        self._quantized.run(stage, instead=self._solved(stage), taps=taps, beside=beside, take=take)
        check_answers(shelf)
        samples = self._quantized.samples
        return Statistics(shelf.answers, samples, self._calibration.is_synthetic) if requests else None

    def _solved(self, stage: Stage) -> list[tuple[ir.TensorProtocol, np.ndarray]]:
        """The weights that run in a part and are solved, as the solutions mean them, and what is added to products."""
        found, solutions, corrected = [], self._layers.solutions, self._layers.corrections.found
        for number in stage.applied:
            if solutions.has(number) and not isinstance(solution := solutions.get(number), str):
                weight, array = self._layers.work[number].weight, solution.weight()
                if number in corrected.factors:
                    # What the norm gave is kept as it was, so the weight takes the factors.
                    array = array * corrected.factors[number][:, None]
                found.append((weight.tensor, as_stored(weight, array)))
            if number in corrected.biases:
                tensor = self._layers.corrections.biases[number].tensor
                found.append((tensor, corrected.biases[number].astype(tensor.dtype.numpy())))
        return found


def as_stored(weight: Weight, decoded: np.ndarray) -> np.ndarray:
    """Numbers in the shape in which operators read a weight, in the shape and type in which it is stored."""
    array = decoded.reshape(view_shape(weight.tensor.shape.numpy(), weight.steps))
    return undo_views(array.astype(weight.tensor.dtype.numpy()), weight.tensor.shape.numpy(), weight.steps)
