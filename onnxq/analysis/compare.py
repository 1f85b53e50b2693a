"""How far two models are apart on the same data: at their outputs, and at each tensor both of them compute."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxq.analysis.agreement import Outcomes
from onnxq.analysis.comparison import Comparison, Difference
from onnxq.analysis.distance import Distance
from onnxq.analysis.execution import execution
from onnxq.errors import UsageError
from onnxq.model.labels import module_of
from onnxq.model.load import Model, load
from onnxq.model.operators import operator_name
from onnxq.model.probe import runnable
from onnxq.model.scopes import subgraphs
from onnxq.runtime.inputs import Input, inputs_of
from onnxq.runtime.session import run, session
from onnxq.statistics.data import Source, read
from onnxq.statistics.feeds import Feeds, feeds_for

if TYPE_CHECKING:
    import onnxruntime

Progress = Callable[[int, int], None]
"""(runs of both models done, runs in all)"""

# Tensors taken out of a model in one run: what is in memory is two of each, for one batch.
_GROUP = 32
_Maker = tuple[str, str]
_FLOATS = (None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def compare(
    a: Model | str | Path,
    b: Model | str | Path,
    *,
    data: Source,
    sequence: int = 256,
    batch: int = 1,
    limit: int | None = 8,
    per_layer: bool = True,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    accuracy_level: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run two models on the same data and measure how far b is from a.

    Tensors are compared by name, so a rewrite that moves a scale from one tensor to another shows as a difference there
    although the model computes the same. Taking intermediate tensors out keeps onnxruntime from merging the operators
    around them, which changes floats in the last digits.

    Args:
        a: the reference, loaded or as a path.
        b: the other model.
        data: as for `onnxq.statistics.feeds.feeds_for`.
        sequence: tokens in a window, where the data is a stream of tokens.
        batch: samples run at once.
        limit: use only the first `limit` samples or windows; None uses all.
        per_layer: compare intermediate tensors too.
        providers: onnxruntime's execution providers.
        threads: threads within one operator.
        accuracy_level: how exactly fused low-bit matmuls compute; see `onnxq.runtime.session.session`.
        progress: called with runs done and runs in all.

    Raises:
        UsageError: the models have no output in common.
        DataError: the data does not fit model a.
        SessionError: onnxruntime cannot load or run one of them.
    """
    models = [each if isinstance(each, Model) else load(each) for each in (a, b)]
    outputs, layers = _shared(models[0].ir, models[1].ir)
    if not outputs:
        names = [", ".join(str(value.name) for value in model.ir.graph.outputs) for model in models]
        raise UsageError(f"the models have no output in common: a has {names[0]}, b has {names[1]}")
    inner = list(layers) if per_layer else []
    groups = [inner[at : at + _GROUP] for at in range(0, len(inner), _GROUP)] or [[]]
    distances = {name: Distance() for name in (*outputs, *inner)}
    open_session = partial(session, providers=providers, threads=threads, accuracy_level=accuracy_level)
    cut = partial(feeds_for, read(data), sequence=sequence, batch=batch, limit=limit)
    samples, outcomes = 0, Outcomes()
    for number, group in enumerate(groups):
        with ExitStack() as stack:
            pair = _Pair(models, [open_session(stack.enter_context(runnable(model, group))) for model in models], cut)
            samples = pair.samples
            for done in pair.run(group, () if number else tuple(outputs), distances, outcomes):
                if progress:
                    progress(number * pair.batches + done, len(groups) * pair.batches)
            # Before the next two sessions are opened, so that each model's weights are in memory once.
            del pair
    makers = outputs | layers
    found = {
        name: Difference(name, *makers[name], sums.sqnr_db, sums.cosine, sums.max_abs, sums.nonfinite)
        for name, sums in distances.items()
        if not sums.problem
    }
    ways = [execution(each, accuracy_level=accuracy_level) for each in models]
    return Comparison(
        outputs=tuple(found[name] for name in outputs if name in found),
        layers=tuple(found[name] for name in inner if name in found),
        skipped={name: sums.problem for name, sums in distances.items() if sums.problem},
        samples=samples,
        execution=(ways[0], ways[1]),
        agreements=outcomes.agreements(),
        worst_samples=outcomes.worst(),
    )


class _Pair:
    """Two sessions and the batches they run."""

    def __init__(
        self,
        models: Sequence[Model],
        opened: Sequence["onnxruntime.InferenceSession"],
        cut: Callable[[Sequence[Input]], Feeds],
    ) -> None:
        self._opened = opened
        first, second = (cut(inputs_of(*each)) for each in zip(opened, models, strict=True))
        # Where one model fixes the batch, the last batch of both is filled up.
        fixed = first.fixed or second.fixed
        self._feeds = [replace(feeds, fixed=fixed) for feeds in (first, second)]
        if first.batch != second.batch:
            raise UsageError(
                f"the models run {first.batch} and {second.batch} samples at once: pass the fixed batch size"
            )
        self.samples, self.batches = first.samples, first.batches

    def run(
        self, inner: Sequence[str], outputs: Sequence[str], distances: dict[str, Distance], outcomes: Outcomes
    ) -> Iterator[int]:
        """Add the distances of all these tensors over every batch, and what becomes of outputs; yields batches done."""
        names = [*inner, *outputs]
        for done, feeds in enumerate(zip(*self._feeds, strict=True), start=1):
            # Rows that only fill a batch repeat a sample, so they may count.
            results = [run(opened, names, feed.inputs) for opened, feed in zip(self._opened, feeds, strict=True)]
            batch = self._feeds[0].batch if self._feeds[0].fixed else feeds[0].rows
            for name, left, right in zip(names, *results, strict=True):
                a, b = np.asarray(left), np.asarray(right)
                distances[name].add(a, b)
                if name in outputs:
                    outcomes.add(name, a, b, first=feeds[0].first, rows=feeds[0].rows, batch=batch)
            yield done


def _shared(a: ir.Model, b: ir.Model) -> tuple[dict[str, _Maker], dict[str, _Maker]]:
    """Outputs and intermediate float tensors that both main graphs have, each with what makes it in a."""
    makers_a, makers_b = _makers(a.graph), _makers(b.graph)
    names_b = {value.name for value in b.graph.outputs}
    outputs = {
        str(value.name): makers_a.get(str(value.name), ("", "")) for value in a.graph.outputs if value.name in names_b
    }
    skip = outputs.keys() | {str(value.name) for value in (*a.graph.outputs, *b.graph.outputs)}
    return outputs, {name: maker for name, maker in makers_a.items() if name in makers_b and name not in skip}


def _makers(graph: ir.Graph) -> dict[str, _Maker]:
    """The operator and module behind each tensor that may hold floats and depends on the model's inputs.

    What depends on weights alone is left out: taking a dequantized weight out of the graph keeps onnxruntime from
    fusing the operator that reads it.
    """
    varying = {id(value) for value in graph.inputs if value.const_value is None}
    makers = {}
    for node in graph:
        if not subgraphs(node) and not any(id(value) in varying for value in node.inputs):
            continue
        varying.update(id(value) for value in node.outputs)
        for value in node.outputs:
            if value.name and value.dtype in _FLOATS:
                makers[value.name] = operator_name(node), module_of(node)
    return makers
