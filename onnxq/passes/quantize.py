"""Quantize weights: each is read, solved, packed and handed to the sink, and its readers get a dequantizing node.

A dequantizing node is `DequantizeLinear` where the target knows the tensor type of the format, and a function of
onnxq's where it does not; `insert` builds both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxq.methods.backend import get_module
from onnxq.methods.histogram import histogram
from onnxq.methods.solution import Solution
from onnxq.model.sites import Weight
from onnxq.passes import int8
from onnxq.passes.compensate import compensate
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.edit import Editor
from onnxq.passes.form import Table, as_table, leaves_tiled, runs_as_integers
from onnxq.passes.fusion import is_matmul_weight
from onnxq.passes.insert import insert
from onnxq.passes.integers import quantize_biases, reads_integers, with_zero_point
from onnxq.passes.joining import Joining
from onnxq.passes.lookups import replace_lookups
from onnxq.passes.partly_binary import insert_partly_binary
from onnxq.passes.plan import Decision, Plan
from onnxq.passes.sink import Sink
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import in_order, solve, unusable, work_of
from onnxq.passes.target import Target
from onnxq.passes.tiles import replace_products
from onnxq.recipes import NonFinitePolicy, QuantSpec
from onnxq.statistics.statistics import Statistics


@dataclass(frozen=True)
class Result:
    """What became of one weight.

    Attributes:
        weight: Its name.
        format: The format it took.
        size_bytes: Bytes of codes, scales and zero points.
        sqnr_db: Signal to quantization noise of the weight.
        skipped: Why it was left float after all (`non_finite: skip`), or None.
        clamped: What was replaced in it (`non_finite: clamp`), or None.
        histogram: How its values lie on the grid of its format; see `onnxq.methods.histogram`.
    """

    weight: str
    format: str
    size_bytes: int
    sqnr_db: float
    skipped: str | None = None
    clamped: str | None = None
    histogram: tuple[int, ...] = ()


def quantize_weights(
    model: ir.Model,
    plan: Plan,
    weights: Sequence[Weight],
    sink: Sink,
    *,
    joining: Joining | None = None,
    statistics: Statistics | None = None,
    solutions: Solutions | None = None,
    non_finite: NonFinitePolicy = "error",
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[Result]:
    """Carry out a plan.

    Args:
        model: Edited in place.
        plan: From `make_plan` on this model.
        weights: From `make_plan`.
        sink: Takes the bytes.
        joining: Weights whose products become one.
        statistics: From a calibration run on the same model, for methods that want them.
        solutions: Of all weights that the plan quantizes, where they are solved already.
        non_finite: What to do with a weight that holds NaN or Inf.
        device: `cpu` or `cuda`: where weights are solved.
        threads: How many weights are solved at a time; by default as many as there are processors.
        progress: Called with a weight's name and size in elements when it is done.

    Returns:
        One result for each weight that the plan quantizes, in order.

    Raises:
        NonFiniteError: A weight holds NaN or Inf, and the policy is `error`.
    """
    editor, curvatures, xp = Editor(model), Curvatures(statistics), get_module(device)
    work = work_of(model.graph, plan, weights)

    def solved(number: int) -> Solution | str:
        if solutions is not None:
            return solutions.get(number)
        found = solve(work[number], non_finite, curvatures.of(work[number].measured), xp)
        # The next weights are solved before this one is written: memory should not hold them all.
        work[number].weight.release()
        return found

    joining = joining or Joining(model.graph, (), sink, wanted=False)
    order = joining.order([item.weight.name for item in work])
    results: dict[int, Result] = {}
    with in_order([partial(solved, number) for number in order], threads) as found:
        for number, solution in zip(order, found, strict=True):
            weight, decision = work[number].weight, work[number].decision
            if isinstance(solution, str):
                results[number] = Result(weight.name, "", weight.size_bytes, float("inf"), skipped=solution)
            else:
                made = _replace(editor, weight, decision, solution, joining.sink(weight.name))
                bad = unusable(weight) if non_finite == "clamp" else None
                results[number] = replace(made, clamped=bad and f"{bad}: clamped")
            joining.finished(editor, weight.name)
            weight.release()
            if progress is not None:
                progress(weight.name, weight.size)
    return [results[number] for number in sorted(results)]


def _replace(editor: Editor, weight: Weight, decision: Decision, solution: Solution, sink: Sink) -> Result:
    """Store a solved weight and give its readers what stands for it now."""
    spec, kind = decision.spec, solution.format.name
    if spec is None:
        raise ValueError(weight.name)
    counts = histogram(weight.read().reshape(solution.codes.shape), solution)
    text = f"{weight.name} in {spec.describe(kind)}, SQNR {solution.sqnr_db:.1f} dB"
    size_bytes = 0 if solution.low_rank is None else compensate(editor, weight, solution.low_rank, sink)
    table = as_table(weight, spec, decision.target)
    if table is None:
        size_bytes += _store(editor, weight, spec, solution, decision.target, sink, text)
    else:
        size_bytes += _store_table(editor, table, spec, solution, decision.target, sink, text)
    return Result(weight.name, kind, size_bytes, solution.sqnr_db, histogram=counts)


def _store_table(
    editor: Editor, table: Table, spec: QuantSpec, solution: Solution, target: Target, sink: Sink, text: str
) -> int:
    """Store what lookups read, and products beside them; its bytes."""
    size_bytes = 0 if table.in_tiles else replace_lookups(editor, table.rows, solution, sink, text)
    if table.columns is None:
        return size_bytes
    turned = solution.turned()
    if spec.scale == "auto" and table.columns.dtype == ir.DataType.FLOAT:
        # Of a table that is cast behind its constant, float32 reads it with scales of its own type.
        turned = replace(turned, scale=turned.scale.astype(np.float32))
    if table.in_tiles:
        return replace_products(editor, table.columns, turned, sink, text, lookups=table.rows.sites)
    return size_bytes + _store(editor, table.columns, spec, turned, target, sink, text)


def _store(
    editor: Editor, weight: Weight, spec: QuantSpec, solution: Solution, target: Target, sink: Sink, text: str
) -> int:
    """Store what readers take in the place of a weight, in the form that the target has for it; its bytes."""
    alone = solution.low_rank is None and solution.outliers is None
    exact = int8.as_int8(solution, weight.dtype) if target == "ort-int8" and alone else None
    if exact is not None and exact.codes.size + exact.scale.nbytes < weight.size_bytes:
        solution, spec = exact, spec.model_copy(update={"scale": "auto"})
        products = is_matmul_weight(weight) and not reads_integers(weight)
        size_bytes = int8.replace_matmuls(editor, weight, solution, sink, text) if products else None
        if size_bytes is not None:
            return size_bytes
    if target != "native" and runs_as_integers(weight, solution.format, spec):
        solution = with_zero_point(weight, solution)
        size_bytes = insert(editor, weight, spec, solution, target, sink, text)
        quantize_biases(editor, weight, solution, sink)
        return size_bytes
    if target == "ort-cuda" and leaves_tiled(weight, solution.format, spec):
        return replace_products(editor, weight, solution, sink, text)
    if solution.salient is not None:
        return insert_partly_binary(editor, weight, spec, solution, solution.salient, sink, text)
    return insert(editor, weight, spec, solution, target, sink, text)
