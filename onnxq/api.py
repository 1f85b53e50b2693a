"""The calls that the command line and Python programs use."""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx

from onnxq.analysis.execution import execution
from onnxq.errors import UsageError
from onnxq.model.form import Form
from onnxq.model.load import Model, Source, from_proto, guard, load
from onnxq.model.save import stage
from onnxq.model.sites import Weight, find_weights
from onnxq.passes.calibrate import all_requests, needy, requests, statistics_for
from onnxq.passes.finish import finish, fuse_products
from onnxq.passes.plan import Decision, Plan, Selection, make_plan
from onnxq.passes.quantize import Result, quantize_weights
from onnxq.passes.sequential import solve_in_sequence
from onnxq.passes.sink import Memory, Sink
from onnxq.passes.solutions import Solutions
from onnxq.passes.target import Target, check_target
from onnxq.recipes import Recipe, load_recipe
from onnxq.report import Entry, Report
from onnxq.statistics.cache import check_file, collected, save
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.statistics import Statistics

Progress = Callable[[str, int, int], None]
"""Called with the weight just done, elements done, and elements in all."""
Globs = str | Sequence[str]
"""One glob, or several."""


def plan(
    model: str | Path | Model,
    recipe: str | Path | Recipe = "fp6",
    *,
    target: str = "ort",
    include: Globs = (),
    exclude: Globs = (),
) -> Report:
    """Say what `quantize` would do, without reading a weight or writing a file; arguments and errors as there."""
    started = time.perf_counter()
    loaded = model if isinstance(model, Model) else load(model)
    made, _ = make_plan(loaded.ir, load_recipe(recipe), check_target(target), _selection(include, exclude))
    entries = tuple(_planned(decision) for decision in made)
    return _report(loaded, None, made, entries, started=started)


def quantize(
    model: str | Path,
    recipe: str | Path | Recipe = "fp6",
    *,
    output: str | Path | None = None,
    target: str = "ort",
    include: Globs = (),
    exclude: Globs = (),
    force: bool = False,
    calibration: Calibration | None = None,
    statistics: str | Path | None = None,
    sequential: bool | None = None,
    resume: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Quantize an ONNX file into another one.

    Args:
        model: The .onnx file; its external data is read from beside it.
        recipe: A preset's name, a YAML file, or a `Recipe`.
        output: The file to write; by default `<model>-<recipe>.onnx` beside the model. It appears complete or not at
            all; until then what stood there stays.
        target: `ort` runs in onnxruntime as it is, `standard` uses the tensor types of ONNX 1.23 (for interchange; no
            runtime executes all of them), `ort-int8` stores FP6 E2M3 and FP4 as int8 for onnxruntime's 8-bit kernel,
            `ort-cuda` lays weights out as onnxq's GPU kernels read them (without such a GPU it runs all the same).
        include: Globs on names of nodes and weights; others stay float.
        exclude: Globs on names of nodes and weights that stay float.
        force: Replace an output that exists.
        calibration: Data for methods that look at activations; of the others some do better with it.
        statistics: A file of `calibrate`, in place of the data.
        sequential: Let the statistics of a layer see the layers before it already quantized, layer by layer. By default
            where a method needs data (GPTQ) and they are not kept in a cache.
        resume: With `sequential`, a folder where solved weights are kept: new, or of an interrupted run, which goes on
            where it was. It stays afterwards.
        device: `cpu` or `cuda`: where weights are solved; a GPU needs CuPy and pays off for large layers.
        threads: Weights solved at a time; by default one a processor.
        progress: Told about each weight when it is done.

    Returns:
        The report: every weight, either with its format or with the reason why it stayed float. With a recipe that
        quantizes nothing here, the output is a byte-identical copy.

    Raises:
        RecipeError: The recipe has a mistake.
        ModelError, UnsafeModelError: The model is broken, or refers to data it must not reach.
        NonFiniteError: A weight holds NaN or Inf, and the recipe's policy is `error`.
        OutputError: The output exists, or cannot be written.
        UsageError: There is no such target, `threads` is not positive, or a method needs calibration data.
        DataError: The calibration data or the statistics do not fit the model.
        NonFiniteError: An activation is NaN or Inf on the calibration data.
    """
    started = time.perf_counter()
    chosen, checked_target, selection = load_recipe(recipe), check_target(target), _selection(include, exclude)
    if output is None:
        name = re.sub(r"[^\w.-]+", "-", chosen.name)
        output = Path(model).with_name(f"{Path(model).stem}-{name}.onnx")
    with ExitStack() as held, stage(output, force=force, overwrite_of=Path(model)) as staging:
        if not any(rule.weight for rule in chosen.rules):
            # A copy needs no graph, so it also keeps what the graph library would lose.
            source = guard(model)
            written = staging.commit_copy(source)
            copied = Plan(chosen.name, checked_target, ())
            size_bytes = source.size_bytes
            return _report(source, written, copied, (), started=started, output_bytes=size_bytes)
        loaded = load(model)
        made, weights = make_plan(loaded.ir, chosen, checked_target, selection)
        found, solutions = None, None
        if calibration is not None and statistics is not None:
            raise UsageError("give either calibration data or a file of statistics")
        if _is_sequential(made, sequential, resume, calibration):
            solutions = _in_sequence(
                loaded, chosen, (made, weights), calibration, statistics, resume, held, (device, threads)
            )
        else:
            found = statistics_for(loaded, made, weights, calibration, statistics)
        entries = _transform(loaded, chosen, (made, weights), staging, found, (device, threads), progress, solutions)
        written = staging.commit(loaded) if any(each.format for each in entries) else staging.commit_copy(loaded)
    size_bytes = guard(written).size_bytes
    notes = (*_notes(loaded, checked_target), *_calibrated(loaded, found, calibration, solutions))
    return _report(loaded, written, made, entries, started=started, output_bytes=size_bytes, notes=notes)


def calibrate(
    model: str | Path,
    calibration: Calibration,
    *,
    output: str | Path,
    recipe: str | Path | Recipe | None = None,
    force: bool = False,
) -> Statistics:
    """Run a model on data and write what methods want to know about its activations, for `quantize`.

    Args:
        model: The .onnx file.
        calibration: The data.
        output: The .safetensors file to write. It appears complete or not at all.
        recipe: Collect what this recipe needs; by default what any method may want.
        force: Replace an output that exists.

    Returns:
        The statistics; empty where the recipe needs none.

    Raises:
        RecipeError: The recipe has a mistake.
        ModelError, UnsafeModelError: The model is broken, or refers to data it must not reach.
        DataError: The data does not fit the model.
        NonFiniteError: An activation is NaN or Inf.
        OutputError: The output exists, or cannot be written.
    """
    check_file(Path(output), force=force)
    loaded = load(model)
    if recipe is None:
        wanted = all_requests(find_weights(loaded.ir), loaded.ir.graph)
    else:
        made, weights = make_plan(loaded.ir, load_recipe(recipe), "ort")
        wanted = requests(made, weights, loaded.ir.graph)
    found = collected(loaded, wanted, calibration)
    save(found, output, loaded, calibration)
    return found


def quantize_proto(
    model: onnx.ModelProto,
    recipe: str | Path | Recipe = "fp6",
    *,
    target: str = "ort",
    include: Globs = (),
    exclude: Globs = (),
    calibration: Calibration | None = None,
    threads: int | None = None,
) -> tuple[onnx.ModelProto, Report]:
    """Quantize a model in memory; arguments and errors as for `quantize`. The argument is not changed."""
    started = time.perf_counter()
    loaded = from_proto(model)
    chosen = load_recipe(recipe)
    made, weights = make_plan(loaded.ir, chosen, check_target(target), _selection(include, exclude))
    found = statistics_for(loaded, made, weights, calibration)
    entries = _transform(loaded, chosen, (made, weights), Memory(), found, ("cpu", threads), None)
    result = onnx.ModelProto()
    if any(each.format for each in entries):
        result.ParseFromString(Form.of(loaded.ir).tobytes())
    else:
        result.CopyFrom(model)
    notes = (*_notes(loaded, made.target), *_calibrated(loaded, found, calibration))
    report = _report(loaded, None, made, entries, started=started, output_bytes=result.ByteSize(), notes=notes)
    return result, report


def _selection(include: Globs, exclude: Globs) -> Selection:
    return Selection(*((globs,) if isinstance(globs, str) else tuple(globs) for globs in (include, exclude)))


def _transform(
    model: Model,
    recipe: Recipe,
    planned: tuple[Plan, list[Weight]],
    sink: Sink,
    statistics: Statistics | None,
    workers: tuple[str, int | None],
    progress: Progress | None,
    solutions: Solutions | None = None,
) -> tuple[Entry, ...]:
    """Quantize what is planned, and bring the graph into the form of the target."""
    device, threads = workers
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; at least one has to work")
    made, weights = planned
    if not made.quantized:
        return tuple(_planned(decision) for decision in made)
    done, total = 0, sum(weight.size for weight, each in zip(weights, made, strict=True) if each.spec)

    def advance(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(name, done, total)

    results = iter(
        quantize_weights(
            model.ir,
            made,
            weights,
            sink,
            statistics=statistics,
            solutions=solutions,
            non_finite=recipe.non_finite,
            device=device,
            threads=threads,
            progress=advance,
        )
    )
    fuse_products(model.ir)
    finish(model.ir, made.opset, made.ir_version)
    model.ir.metadata_props.update(
        {
            "onnxq.version": _version(),
            "onnxq.target": made.target,
            "onnxq.recipe": recipe.model_dump_json(exclude_defaults=True),
        }
    )
    return tuple(_planned(each) if each.spec is None else _carried_out(each, next(results)) for each in made)


def _is_sequential(made: Plan, asked: bool | None, resume: str | Path | None, calibration: Calibration | None) -> bool:
    """Whether layers are solved one after the other."""
    if resume is not None and asked is False:
        raise UsageError("only a run that goes layer by layer can be resumed: leave out sequential, or resume")
    if asked is not None or resume is not None:
        return bool(asked or resume)
    return calibration is not None and calibration.cache is None and bool(needy(made))


def _in_sequence(
    model: Model,
    recipe: Recipe,
    planned: tuple[Plan, list[Weight]],
    calibration: Calibration | None,
    statistics: str | Path | None,
    folder: str | Path | None,
    held: ExitStack,
    workers: tuple[str, int | None],
) -> Solutions:
    """Solve everything layer by layer; without a folder, in one that lasts as long as `held`."""
    if statistics is not None or calibration is None:
        raise UsageError(
            "sequential calibration runs the model itself: give calibration data, not a file of statistics"
        )
    if folder is None:
        folder = held.enter_context(tempfile.TemporaryDirectory(prefix="onnxq-"))
    made, weights = planned
    return solve_in_sequence(
        model,
        made,
        weights,
        calibration,
        Path(folder),
        non_finite=recipe.non_finite,
        device=workers[0],
        threads=workers[1],
    )


def _calibrated(
    model: Model, statistics: Statistics | None, calibration: Calibration | None, solutions: Solutions | None = None
) -> tuple[str, ...]:
    """On what the statistics were collected, for the report."""
    if solutions is not None and calibration is not None:
        how = "layer by layer: each is calibrated behind the quantized layers before it"
        return how, _sampled(calibration.batches(model).samples, synthetic=calibration.is_synthetic)
    if statistics is None:
        return ("no method of this recipe looks at activations: the data was not used",) if calibration else ()
    return (_sampled(statistics.samples, synthetic=statistics.synthetic),)


def _sampled(samples: int, *, synthetic: bool) -> str:
    if synthetic:
        return f"calibrated on {samples} synthetic samples, made from the input specs: real data does better"
    return f"calibrated on {samples} samples"


def _notes(model: Model, target: Target) -> tuple[str, ...]:
    """How the quantized model runs, for the report."""
    if target == "standard":
        return ("for interchange: onnxruntime 1.31 does not load opset 28; --target ort runs there",)
    return tuple(execution(model).sentences())


def _planned(decision: Decision) -> Entry:
    spec = decision.spec
    return Entry(
        weight=decision.weight,
        op=decision.op,
        readers=decision.readers,
        shape=decision.shape,
        size_bytes=decision.size_bytes,
        result_bytes=decision.planned_bytes,
        format=None if spec is None else "|".join(spec.format),
        spec=None if spec is None else spec.describe(),
        reason=decision.reason,
    )


def _carried_out(decision: Decision, result: Result) -> Entry:
    entry = _planned(decision)
    if result.skipped is not None:
        return replace(entry, result_bytes=decision.size_bytes, format=None, spec=None, reason=result.skipped)
    return replace(entry, result_bytes=result.size_bytes, format=result.format, sqnr_db=result.sqnr_db)


def _report(
    model: Model | Source,
    output: Path | None,
    made: Plan,
    entries: tuple[Entry, ...],
    *,
    started: float,
    output_bytes: int = 0,
    notes: tuple[str, ...] = (),
) -> Report:
    return Report(
        model=str(model.path) if model.path else None,
        output=str(output) if output else None,
        recipe=made.recipe,
        target=made.target,
        entries=entries,
        model_bytes=model.size_bytes,
        output_bytes=output_bytes,
        seconds=time.perf_counter() - started,
        notes=notes,
        version=_version(),
    )


def _version() -> str:
    try:
        return version("onnxq")
    except PackageNotFoundError:
        return "unknown"
