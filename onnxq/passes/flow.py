"""`Flow`: a model that runs part by part, and what flows from each part to those behind it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxq.model.load import Model
from onnxq.model.segment import segment, standing_in
from onnxq.model.taps import Tap
from onnxq.passes.activations import Activations
from onnxq.passes.stages import Stage
from onnxq.runtime.session import run, session
from onnxq.statistics.batches import Batch
from onnxq.statistics.calibration import Calibration


class Flow:
    """All batches of the data on their way through a model.

    Attributes:
        samples: How many the data has, once the first part has run.
    """

    def __init__(
        self, model: Model, calibration: Calibration, kept: Activations, passed: Mapping[str, str] | None = None
    ) -> None:
        """Nothing has run yet.

        Args:
            model: Not changed.
            calibration: The data.
            kept: Empty.
            passed: For values of the model, values before them that flow in their place.
        """
        self._passed = passed
        self._model = model
        self._calibration = calibration
        self._kept = kept
        self._batches: list[Batch] = []
        self.samples = 0

    def values(self, number: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Values of one batch, which the last part kept."""
        return self._kept.get(number, names)

    def run(
        self,
        stage: Stage,
        more: Sequence[str] = (),
        *,
        instead: Iterable[tuple[ir.TensorProtocol, np.ndarray]] = (),
        taps: Sequence[Tap] = (),
        beside: Callable[[int], Mapping[str, np.ndarray]] = lambda _: {},
        take: Callable[[Batch, Iterator[np.ndarray]], None] = lambda _batch, _results: None,
    ) -> None:
        """Run the part of a stage on all batches.

        Args:
            stage: The next one.
            more: Values that are kept until the next part has run, beside those that later parts read.
            instead: Numbers that stand in the places of tensors of the model.
            taps: What is computed about values of the part.
            beside: For the number of a batch, values that taps read beside those of the part.
            take: Gets the results of the taps for each batch.
        """
        if not self._batches:
            self._feed({*stage.given, *stage.kept, *more})
        given = {name: _input(name, each) for name, each in self._read(0, stage, beside).items()}
        made = [name for name in dict.fromkeys([*stage.kept, *more]) if name not in self._kept.names(0)]
        # Onnxruntime finds out the types of outputs by itself.
        flowing = Tap(made, [], [onnx.ValueInfoProto(name=name) for name in made])
        outputs = [each.name for tap in (*taps, flowing) for each in tap.outputs]
        cut = segment(self._model, given, [*taps, flowing], passed=self._passed)
        with standing_in(self._model, instead), cut as opened:
            # Without outputs there is nothing to run, and no session of it.
            running = session(opened, providers=self._calibration.providers) if outputs else None
            for number, batch in enumerate(self._batches):
                if running is not None:
                    with self._calibration.running():
                        results = run(running, outputs, self._read(number, stage, beside))
                    of_taps = len(results) - len(made)
                    take(batch, iter(results[:of_taps]))
                    self._kept.put(number, dict(zip(made, results[of_taps:], strict=True)))
                self._kept.keep(number, [*stage.kept, *more])

    def _read(
        self, number: int, stage: Stage, beside: Callable[[int], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        return {**self._kept.get(number, stage.given), **beside(number)}

    def _feed(self, wanted: set[str]) -> None:
        """Keep what the first part and those behind it read of the data."""
        for batch in self._calibration.batches(self._model):
            self._kept.put(len(self._batches), {name: each for name, each in batch.inputs.items() if name in wanted})
            self._batches.append(replace(batch, inputs={}))
            self.samples = max(self.samples, batch.last + 1)


def _input(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    """An input that takes arrays like this one, of any size."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)
