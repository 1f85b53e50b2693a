"""Quantize weights: each is read, solved, packed and handed to the sink, and its readers get a dequantizing node.

A dequantizing node is `DequantizeLinear` where the target knows the tensor type of the format, and a function of
onnxq's where it does not; `insert` builds both.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.errors import NonFiniteError
from onnxq.formats import get_format
from onnxq.methods.grid import GridSpec, largest_of
from onnxq.methods.solution import Solution
from onnxq.methods.solve import SOLVERS
from onnxq.model.sites import Weight
from onnxq.passes import int8
from onnxq.passes.calibrate import Reading, reading_of
from onnxq.passes.curvatures import Curvatures
from onnxq.passes.edit import Editor
from onnxq.passes.insert import insert
from onnxq.passes.plan import Decision, Plan, grouping
from onnxq.passes.sink import Sink
from onnxq.recipes import NonFinitePolicy
from onnxq.statistics.statistics import Statistics

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What became of one weight.

    Attributes:
        weight: Its name.
        format: The format it took.
        size_bytes: Bytes of codes, scales and zero points.
        sqnr_db: Signal to quantization noise of the weight.
        skipped: Why it was left float after all (`non_finite: skip`), or None.
    """

    weight: str
    format: str
    size_bytes: int
    sqnr_db: float
    skipped: str | None = None


def quantize_weights(
    model: ir.Model,
    plan: Plan,
    weights: Sequence[Weight],
    sink: Sink,
    *,
    statistics: Statistics | None = None,
    non_finite: NonFinitePolicy = "error",
    threads: int | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> list[Result]:
    """Carry out a plan.

    Args:
        model: Edited in place.
        plan: From `make_plan` on this model.
        weights: From `make_plan`.
        sink: Takes the bytes.
        statistics: From a calibration run on the same model, for methods that want them.
        non_finite: What to do with a weight that holds NaN or Inf.
        threads: How many weights are solved at a time; by default as many as there are processors.
        progress: Called with a weight's name and size in elements when it is done.

    Returns:
        One result for each weight that the plan quantizes, in order.

    Raises:
        NonFiniteError: A weight holds NaN or Inf, and the policy is `error`.
    """
    editor = Editor(model)
    # Found before the first edit, which changes the graph around other weights.
    work = [
        _Work(weight, each, reading_of(weight, model.graph))
        for weight, each in zip(weights, plan, strict=True)
        if each.spec is not None
    ]
    results = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as executor:
        for item, solved in _in_order(executor, work, non_finite, Curvatures(statistics)):
            weight, decision = item.weight, item.decision
            if isinstance(solved, str):
                results.append(Result(weight.name, "", weight.size_bytes, float("inf"), skipped=solved))
            else:
                results.append(_replace(editor, weight, decision, solved, plan, sink))
            if progress is not None:
                progress(weight.name, weight.size)
    return results


@dataclass(frozen=True)
class _Work:
    """A weight to quantize, and what it is multiplied with."""

    weight: Weight
    decision: Decision
    reading: Reading | None


def _in_order(
    executor: Executor, work: Sequence[_Work], policy: NonFinitePolicy, curvatures: Curvatures
) -> Iterator[tuple[_Work, Solution | str]]:
    """Solutions in the order of the work, with only as many alive as there are workers."""
    pending: deque[tuple[_Work, Future[Solution | str]]] = deque()
    waiting = iter(work)
    try:
        for item in waiting:
            pending.append((item, executor.submit(_solve, item, policy, curvatures)))
            if len(pending) > (os.cpu_count() or 1):
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        for _, future in pending:
            future.cancel()


def _solve(item: _Work, policy: NonFinitePolicy, curvatures: Curvatures) -> Solution | str:
    """Codes and scales of one weight, or why it is left alone."""
    weight, spec = item.weight, item.decision.spec
    if spec is None:
        raise ValueError(weight.name)
    group = grouping(weight, spec)
    array = weight.read().reshape(group.matrix)
    formats = [get_format(name) for name in spec.format]
    grid = GridSpec(formats, group.block, group.scale_type, spec.symmetric, largest_of(array.dtype))
    solver = SOLVERS[spec.method]
    curvature = None if solver.hessian == "no" else curvatures.of(item.reading)

    def solve(array: np.ndarray) -> Solution:
        if curvature is None or group.matrix[2] != 1:
            return solver.solve(array, grid, curvature)
        # Rows are output channels here: seen as [1, K, C] they share one curvature.
        return _turned(solver.solve(np.ascontiguousarray(_turn(array)), grid, curvature))

    try:
        return solve(array)
    except NonFiniteError as error:
        bad = np.argwhere(~np.isfinite(weight.read().astype(np.float32)))
        if not len(bad):
            raise
        what = f"weight '{weight.name}' has {error} (first at {bad[0].tolist()})"
        if policy == "error":
            raise NonFiniteError(
                f"{what}; leave it float with --non-finite skip or --exclude '{weight.name}', or clamp it with "
                "--non-finite clamp"
            ) from None
        if policy == "skip":
            return what
        _logger.warning("%s, clamped", what)
        return solve(_clamped(array))


def _turn(array: np.ndarray) -> np.ndarray:
    """[A, K, 1] as [1, K, A], and back."""
    return array.transpose(2, 1, 0)


def _turned(solution: Solution) -> Solution:
    zero = solution.zero_point
    return replace(
        solution,
        codes=np.ascontiguousarray(_turn(solution.codes)),
        scale=np.ascontiguousarray(_turn(solution.scale)),
        zero_point=None if zero is None else np.ascontiguousarray(_turn(zero)),
    )


def _clamped(array: np.ndarray) -> np.ndarray:
    """NaN becomes zero, Inf the largest finite magnitude of the tensor."""
    floats = array.astype(np.float32)
    largest = np.abs(floats[np.isfinite(floats)]).max(initial=0)
    return np.nan_to_num(floats, copy=False, nan=0.0, posinf=largest, neginf=-largest)


def _replace(editor: Editor, weight: Weight, decision: Decision, solution: Solution, plan: Plan, sink: Sink) -> Result:
    """Store a solved weight and give its readers what stands for it now."""
    spec, kind = decision.spec, solution.format.name
    if spec is None:
        raise ValueError(weight.name)
    size_bytes = None
    exact = int8.as_int8(solution, weight.dtype) if plan.target == "ort-int8" else None
    if exact is not None and exact.codes.size + exact.scale.nbytes < weight.size_bytes:
        solution, spec = exact, spec.model_copy(update={"scale": "auto"})
        if int8.is_matmul_weight(weight):
            size_bytes = int8.replace_matmuls(editor, weight, solution, sink)
    if size_bytes is None:
        size_bytes = insert(editor, weight, spec, solution, plan.target, sink)
    return Result(weight.name, kind, size_bytes, solution.sqnr_db)
