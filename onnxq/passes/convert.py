"""`convert`: the passes, one after the other, from a float model to a quantized one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnxq.errors import UsageError, number_of, with_others
from onnxq.model.load import Model
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.cache import CachePlan, cache_statistics, plan_cache, quantize_cache
from onnxq.passes.calibrate import needy, requests, statistics_for, unmeasured
from onnxq.passes.conversion import Conversion, Converted
from onnxq.passes.correct import Corrections
from onnxq.passes.finish import finish, fuse_products
from onnxq.passes.joining import Joining
from onnxq.passes.layers import Layers, Solving
from onnxq.passes.plan import Decision, Plan, make_plan, revise
from onnxq.passes.prepare import prepare
from onnxq.passes.quantize import Result, quantize_weights
from onnxq.passes.record import Recorder
from onnxq.passes.rounding import ActivationPlan, Rounded, round_activations
from onnxq.passes.rounding.standard import use_standard_pairs
from onnxq.passes.sequential import solve_in_sequence
from onnxq.passes.sink import Sink
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import work_of
from onnxq.passes.step import Change
from onnxq.passes.target import STANDARD_IR_VERSION, STANDARD_OPSET
from onnxq.statistics.statistics import Statistics


def convert(model: Model, asked: Conversion, sink: Sink, folder: Path, recorder: Recorder | None = None) -> Converted:
    """Quantize a model.

    Args:
        model: Its graph is changed.
        asked: What to do.
        sink: Takes the bytes of quantized weights.
        folder: For what lies on the disk meanwhile; empty, and there until the converted model is written.
        recorder: Takes time and memory of each pass.

    Raises:
        UsageError, DataError, NonFiniteError, OutputError, SessionError: See `onnxq.quantize`.
    """
    asked.check()
    during = (recorder or Recorder()).during
    stored = {weight.name: weight.size_bytes for weight in find_weights(model.ir)}
    with during("rewrite the float model"):
        model, changes, asked = _rewrite(model, asked, folder)
    stepped = bool(changes)
    with during("round activations"):
        rounded = round_activations(model, asked.context(folder), asked.statistics)
    with during("plan"):
        job = _plan(rounded, asked)
    with during("calibrate the cache"):
        ranges = cache_statistics(job.model, job.cache, asked.calibration, asked.statistics)
    statistics, solutions = None, None
    if not job.in_sequence:
        with during("calibrate"):
            statistics = _calibrate(job)
    if job.in_sequence or job.plan.correct:
        with during("calibrate and solve, layer by layer" if job.in_sequence else "solve and correct"):
            solutions, corrected = _solve(job, statistics, folder)
        changes = (*changes, *corrected)
        job = replace(job, plan=revise(job.plan, job.model.ir, job.weights))
    notes, warnings = _said(job, statistics or rounded.ranges or ranges, stepped=stepped)
    done = Converted(
        model=job.model,
        plan=_with_sizes(job.plan, stored),
        changes=changes,
        activations=job.activations,
        results=(),
        cache=job.cache,
        notes=notes,
        warnings=warnings,
    )
    if not job.plan.quantized and not done.is_changed:
        return done
    joining = _joining(job, sink)
    with during("solve and pack weights" if solutions is None else "pack weights"):
        results = _pack(job, sink, joining, statistics, solutions)
    with during("fuse products"):
        fuse_products(job.model.ir)
    with during("quantize the cache"):
        quantize_cache(job.model.ir, job.cache, ranges)
    with during("add functions, raise versions"):
        _finish(job)
    clamped = tuple(each.clamped for each in results if each.clamped)
    return replace(done, results=tuple(results), changes=(*changes, *joining.changes), warnings=(*warnings, *clamped))


@dataclass(frozen=True)
class _Job:
    """What is left to do when everything is decided.

    Attributes:
        asked: By the caller; without a cache of statistics that the steps on the float model have made stale.
        model: The float model, after the steps, with rounded activations.
        plan: What happens to each weight.
        weights: Those of the plan, in its order.
        activations: What was decided about each activation.
        exact: Activations that are rounded, and what each was before.
        cache: What happens to the cache of keys and values.
        in_sequence: Layers are solved one behind the other.
    """

    asked: Conversion
    model: Model
    plan: Plan
    weights: list[Weight]
    activations: ActivationPlan
    exact: Mapping[str, str]
    cache: CachePlan
    in_sequence: bool


def _rewrite(model: Model, asked: Conversion, folder: Path) -> tuple[Model, tuple[Change, ...], Conversion]:
    """The float model after the steps of the recipe, what they did, and what can be asked of that model."""
    model, changes = prepare(model, asked.context(folder))
    if asked.calibration is not None and any(each.done for each in changes):
        # A cache belongs to the model that came in, and so can serve all recipes that leave it as it is.
        asked = replace(asked, calibration=replace(asked.calibration, cache=None))
    return model, changes, asked


def _plan(rounded: Rounded, asked: Conversion) -> _Job:
    """Decide what happens to each weight and to the cache, and how it is gone about."""
    graph = rounded.model.ir
    plan, weights = make_plan(graph, asked.recipe, asked.target, asked.selection)
    return _Job(
        asked=asked,
        model=rounded.model,
        plan=plan,
        weights=weights,
        activations=rounded.plan,
        exact=rounded.exact,
        cache=plan_cache(graph.graph, asked.recipe.cache),
        in_sequence=_is_sequential(plan, asked),
    )


def _is_sequential(plan: Plan, asked: Conversion) -> bool:
    """Whether layers are solved one behind the other."""
    if asked.calibration is None:
        return False
    if asked.sequential is not None or asked.resume is not None:
        return bool(asked.sequential or asked.resume)
    return asked.calibration.cache is None and bool(needy(plan))


def _calibrate(job: _Job) -> Statistics | None:
    """What the methods want to know about activations, all of it on the float weights."""
    asked, graph = job.asked, job.model.ir.graph
    if asked.statistics is not None and job.exact and requests(job.plan, job.weights, graph):
        raise UsageError(
            f"the methods of recipe '{asked.recipe.name}' look at rounded activations, which a file of statistics "
            "does not know: give the data, --calib DATA"
        )
    return statistics_for(job.model, job.plan, job.weights, asked.calibration, asked.statistics, job.exact)


def _solve(job: _Job, statistics: Statistics | None, folder: Path) -> tuple[Solutions, tuple[Change, ...]]:
    """All weights solved, on data layer by layer or on statistics; the model is corrected around them."""
    asked = job.asked
    corrections = Corrections(job.model, work_of(job.model.ir.graph, job.plan, job.weights), job.plan.correct)
    how: Solving = {"non_finite": asked.recipe.non_finite, "device": asked.device, "threads": asked.threads}
    kept = folder / "solutions" if asked.resume is None else Path(asked.resume)
    if job.in_sequence and asked.calibration is not None:
        solutions = solve_in_sequence(
            job.model,
            job.plan,
            job.weights,
            asked.calibration,
            kept,
            corrections=corrections,
            rounded=job.exact,
            **how,
        )
    else:
        layers = Layers(Solutions(kept, {}), corrections, float_name=lambda name: job.exact.get(name, name), **how)
        layers.finish(range(len(corrections.work)), statistics)
        solutions = layers.solutions
    corrections.apply()
    return solutions, tuple(corrections.found.changes)


def _joining(job: _Job, sink: Sink) -> Joining:
    """The products that become one, which only the GPU has kernels for."""
    quantized = [weight for weight, each in zip(job.weights, job.plan, strict=True) if each.spec is not None]
    return Joining(job.model.ir.graph, quantized, sink, wanted=job.plan.target == "ort-cuda")


def _pack(
    job: _Job, sink: Sink, joining: Joining, statistics: Statistics | None, solutions: Solutions | None
) -> list[Result]:
    """Put quantized weights in the place of the float ones; they are solved first where they are not yet."""
    return quantize_weights(
        job.model.ir,
        job.plan,
        job.weights,
        sink,
        joining=joining,
        statistics=statistics,
        solutions=solutions,
        non_finite=job.asked.recipe.non_finite,
        device=job.asked.device,
        threads=job.asked.threads,
        progress=_counted(job),
    )


def _counted(job: _Job) -> Callable[[str, int], None] | None:
    """The caller's progress, which is told sums."""
    progress = job.asked.progress
    if progress is None:
        return None
    done, total = 0, sum(weight.size for weight, each in zip(job.weights, job.plan, strict=True) if each.spec)

    def advance(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress(name, done, total)

    return advance


def _finish(job: _Job) -> None:
    """Add the functions that the nodes call, and raise the versions."""
    graph = job.model.ir
    if job.activations.sites and job.plan.target == "standard":
        use_standard_pairs(graph)
        finish(graph, STANDARD_OPSET, STANDARD_IR_VERSION)
    finish(graph, job.plan.opset, job.plan.ir_version)


def _with_sizes(plan: Plan, stored: Mapping[str, int]) -> Plan:
    """A plan with the bytes that each weight took before any step."""

    def as_it_came(decision: Decision) -> Decision:
        return replace(decision, size_bytes=stored.get(decision.weight, decision.size_bytes))

    return replace(plan, decisions=tuple(as_it_came(each) for each in plan))


def _said(job: _Job, seen: Statistics | None, *, stepped: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and warnings about what was planned, and about what methods and steps know about activations."""
    notes = [*job.cache.sentences()]
    warnings = [*job.plan.warnings, *job.activations.warnings, *job.cache.warnings()]
    calibration, samples, synthetic = job.asked.calibration, 0, False
    if job.in_sequence:
        notes.append("layer by layer: each is calibrated behind the quantized layers before it")
    if calibration is not None and (job.in_sequence or stepped):
        samples, synthetic = calibration.batches(job.model).count(), calibration.is_synthetic
    elif seen is not None:
        samples, synthetic = seen.samples, seen.synthetic
    elif calibration is not None or job.asked.statistics is not None:
        unused = "statistics were" if calibration is None else "data was"
        warnings.append(f"nothing that the recipe does here looks at activations: the {unused} not used")
    if blind := unmeasured(job.plan, job.weights, job.model.ir.graph):
        shown = with_others(f"'{blind[0]}'", len(blind) - 1)
        warnings.append(
            f"rounded without data where the method needs it: {shown}; what embeddings, convolutions with groups, and "
            "weights in subgraphs and functions are multiplied with is not measured"
        )
    if synthetic:
        made_up = number_of(samples, "synthetic sample")
        warnings.append(f"calibrated on {made_up}, made from the input specs: real data does better")
    elif samples:
        notes.append(f"calibrated on {number_of(samples, 'sample')}")
    return tuple(notes), tuple(warnings)
