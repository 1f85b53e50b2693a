"""`convert`: the passes, one after the other, from a float model to a quantized one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.errors import UsageError
from onnxq.model.load import Model
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.cache import CachePlan, cache_statistics, plan_cache, quantize_cache
from onnxq.passes.calibrate import needy, requests, statistics_for
from onnxq.passes.correct import Corrections
from onnxq.passes.finish import finish, fuse_products
from onnxq.passes.joining import Joining
from onnxq.passes.layers import Layers, Solving
from onnxq.passes.plan import Decision, Plan, make_plan
from onnxq.passes.prepare import prepare
from onnxq.passes.quantize import Result, quantize_weights
from onnxq.passes.record import Recorder
from onnxq.passes.rounding import ActivationPlan, round_activations
from onnxq.passes.rounding.standard import use_standard_pairs
from onnxq.passes.selection import Selection
from onnxq.passes.sequential import solve_in_sequence
from onnxq.passes.sink import Sink
from onnxq.passes.solutions import Solutions
from onnxq.passes.solving import work_of
from onnxq.passes.step import Change, Context
from onnxq.passes.target import STANDARD_IR_VERSION, STANDARD_OPSET, Target
from onnxq.recipes import Recipe
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.statistics import Statistics

Progress = Callable[[str, int, int], None]
"""Called with the weight just done, elements done, and elements in all."""


@dataclass(frozen=True)
class Conversion:
    """What is asked for; `onnxq.quantize` says what each means.

    Attributes:
        recipe: Which weights are quantized, and how.
        target: Where the model goes.
        selection: What the caller picks beside the recipe.
        calibration: Data to run the model on.
        statistics: A file of statistics, in place of the data.
        sequential: Whether layers are solved one behind the other; None to let the recipe's methods decide.
        resume: A folder where solved weights are kept.
        device: `cpu` or `cuda`: where weights are solved.
        threads: Weights solved at a time.
        progress: Told about each weight when it is done.
    """

    recipe: Recipe
    target: Target
    selection: Selection = field(default_factory=Selection)
    calibration: Calibration | None = None
    statistics: str | Path | None = None
    sequential: bool | None = None
    resume: str | Path | None = None
    device: str = "cpu"
    threads: int | None = None
    progress: Progress | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: Two of the arguments exclude each other, or one is out of range.
        """
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; at least one has to work")
        if self.calibration is not None and self.statistics is not None:
            raise UsageError("give either calibration data or a file of statistics")
        if self.resume is not None and self.sequential is False:
            raise UsageError("only a run that goes layer by layer can be resumed: leave out sequential, or resume")
        if (self.sequential or self.resume is not None) and self.calibration is None:
            raise UsageError(
                "sequential calibration runs the model itself: give calibration data, not a file of statistics"
            )


@dataclass(frozen=True)
class Converted:
    """A model in its new form.

    Attributes:
        model: Its graph is the quantized one, and its weights lie in the sink, or in the folder of the conversion.
        plan: What was decided about each weight.
        changes: What the steps did before the weights were quantized, and what was corrected afterwards.
        activations: What was decided about each activation.
        results: What became of each weight that the plan quantizes, in its order.
        calibrated: How the methods came to know about activations, in sentences.
        cache: What was decided about the cache of keys and values.
    """

    model: Model
    plan: Plan
    changes: tuple[Change, ...]
    activations: ActivationPlan
    results: tuple[Result, ...]
    calibrated: tuple[str, ...]
    cache: CachePlan

    @property
    def is_changed(self) -> bool:
        """The model is not the one that came in."""
        quantized = self.activations.sites or any(each.skipped is None for each in self.results)
        return bool(quantized or self.cache.quantized) or any(each.done for each in self.changes)


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
    context = Context(asked.recipe, asked.target, asked.selection, asked.calibration, folder)
    with during("rewrite the float model"):
        model, changes = prepare(model, context)
    if any(each.done for each in changes) and asked.calibration is not None:
        # A cache belongs to the model that came in, and so can serve all recipes that leave it as it is.
        asked = replace(asked, calibration=replace(asked.calibration, cache=None))
        context = replace(context, calibration=asked.calibration)
    with during("round activations"):
        rounded = round_activations(model, context, asked.statistics)
    model = rounded.model
    with during("plan"):
        plan, weights = make_plan(model.ir, asked.recipe, asked.target, asked.selection)
        cache = plan_cache(model.ir.graph, asked.recipe.cache)
    with during("calibrate the cache"):
        ranges = cache_statistics(model, cache, asked.calibration, asked.statistics)
    statistics, solutions = None, None
    in_sequence = _is_sequential(plan, asked)
    if not in_sequence:
        with during("calibrate"):
            statistics = _at_once(model, plan, weights, asked, rounded.exact)
    if in_sequence or plan.correct:
        with during("calibrate and solve, layer by layer" if in_sequence else "solve and correct"):
            known = asked.calibration if in_sequence else statistics
            solutions, corrections = _solved(model, plan, weights, asked, known, rounded.exact, folder)
        changes = (*changes, *corrections.found.changes)
    calibrated = _calibrated(model, asked, statistics or rounded.ranges or ranges, in_sequence=in_sequence)
    plan = replace(plan, decisions=tuple(_as_it_came(each, stored) for each in plan))
    done = Converted(model, plan, changes, rounded.plan, (), calibrated, cache)
    if not plan.quantized and not done.is_changed:
        return done
    quantized = [weight for weight, each in zip(weights, plan, strict=True) if each.spec is not None]
    joining = Joining(model.ir.graph, quantized, sink, wanted=plan.target == "ort-cuda")
    with during("solve and pack weights" if solutions is None else "pack weights"):
        results = quantize_weights(
            model.ir,
            plan,
            weights,
            sink,
            joining=joining,
            statistics=statistics,
            solutions=solutions,
            non_finite=asked.recipe.non_finite,
            device=asked.device,
            threads=asked.threads,
            progress=_counted(plan, [weight.size for weight in weights], asked.progress),
        )
    with during("fuse products, add functions"):
        fuse_products(model.ir)
        quantize_cache(model.ir, cache, ranges)
        if rounded.plan.sites and plan.target == "standard":
            use_standard_pairs(model.ir)
            finish(model.ir, STANDARD_OPSET, STANDARD_IR_VERSION)
        finish(model.ir, plan.opset, plan.ir_version)
    return replace(done, results=tuple(results), changes=(*changes, *joining.changes))


def _solved(
    model: Model,
    plan: Plan,
    weights: Sequence[Weight],
    asked: Conversion,
    known: Statistics | Calibration | None,
    exact: Mapping[str, str],
    folder: Path,
) -> tuple[Solutions, Corrections]:
    """All weights solved, and what is to be corrected around them: on statistics, or on data layer by layer."""
    corrections = Corrections(model, work_of(model.ir.graph, plan, weights), plan.correct)
    how: Solving = {"non_finite": asked.recipe.non_finite, "device": asked.device, "threads": asked.threads}
    kept = folder / "solutions" if asked.resume is None else Path(asked.resume)
    if isinstance(known, Calibration):
        solutions = solve_in_sequence(model, plan, weights, known, kept, corrections=corrections, rounded=exact, **how)
    else:
        layers = Layers(Solutions(kept, {}), corrections, float_name=lambda name: exact.get(name, name), **how)
        layers.finish(range(len(corrections.work)), known)
        solutions = layers.solutions
    corrections.apply()
    return solutions, corrections


def _at_once(
    model: Model, plan: Plan, weights: Sequence[Weight], asked: Conversion, exact: Mapping[str, str]
) -> Statistics | None:
    """What the methods want to know about activations, all of it on the float weights."""
    if asked.statistics is not None and exact and requests(plan, weights, model.ir.graph):
        raise UsageError(
            f"the methods of recipe '{asked.recipe.name}' look at rounded activations, which a file of statistics "
            "does not know: give the data, --calib DATA"
        )
    return statistics_for(model, plan, weights, asked.calibration, asked.statistics, exact)


def _calibrated(model: Model, asked: Conversion, seen: Statistics | None, *, in_sequence: bool) -> tuple[str, ...]:
    """How the methods came to know about activations."""
    if not in_sequence and seen is not None:
        return (_sampled(seen.samples, synthetic=seen.synthetic),)
    return () if asked.calibration is None else _without_statistics(model, asked.calibration, in_sequence=in_sequence)


def _as_it_came(decision: Decision, stored: Mapping[str, int]) -> Decision:
    """A decision with the bytes that its weight took before any step."""
    return replace(decision, size_bytes=stored.get(decision.weight, decision.size_bytes))


def _is_sequential(plan: Plan, asked: Conversion) -> bool:
    """Whether layers are solved one behind the other."""
    if asked.calibration is None:
        return False
    if asked.sequential is not None or asked.resume is not None:
        return bool(asked.sequential or asked.resume)
    return asked.calibration.cache is None and bool(needy(plan))


def _counted(plan: Plan, sizes: list[int], progress: Progress | None) -> Callable[[str, int], None] | None:
    """A progress that adds up."""
    if progress is None:
        return None
    done, total = 0, sum(size for size, each in zip(sizes, plan, strict=True) if each.spec)

    def advance(name: str, size: int) -> None:
        nonlocal done
        done += size
        progress(name, done, total)

    return advance


def _without_statistics(model: Model, calibration: Calibration, *, in_sequence: bool) -> tuple[str, ...]:
    """What data was good for where no statistics of the whole model came of it."""
    if not in_sequence:
        return ("no method of this recipe looks at activations: the data was not used",)
    how = "layer by layer: each is calibrated behind the quantized layers before it"
    return how, _sampled(calibration.batches(model).samples, synthetic=calibration.is_synthetic)


def _sampled(samples: int, *, synthetic: bool) -> str:
    if synthetic:
        return f"calibrated on {samples} synthetic samples, made from the input specs: real data does better"
    return f"calibrated on {samples} samples"
