"""The calls that the command line and Python programs use."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxq.errors import UsageError
from onnxq.model.form import Form
from onnxq.model.load import Model, from_proto, guard, load
from onnxq.model.save import stage
from onnxq.model.sites import find_weights
from onnxq.model.temporary import temporary_folder
from onnxq.passes.calibrate import all_requests, requests
from onnxq.passes.conversion import Conversion, Progress
from onnxq.passes.convert import convert
from onnxq.passes.plan import make_plan
from onnxq.passes.record import Recorder
from onnxq.passes.rounding import plan_activations
from onnxq.passes.selection import Selection
from onnxq.passes.sink import Memory
from onnxq.passes.target import check_target
from onnxq.recipes import Recipe, load_recipe
from onnxq.report import Report, compose
from onnxq.statistics.cache import check_file, collected, save
from onnxq.statistics.calibration import Calibration
from onnxq.statistics.statistics import Statistics

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
    asked = load_recipe(recipe), check_target(target), _selection(include, exclude)
    made, _ = make_plan(loaded.ir, *asked)
    return compose.planned(loaded, made, plan_activations(loaded.ir, *asked), asked[0], started)


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
            `ort-cuda` lays weights out as onnxq's GPU kernels read them (without such a GPU it runs all the same),
            `native` leaves integers to onnxq's own kernels as well.
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
        NonFiniteError: A weight holds NaN or Inf, and the recipe's policy is `error`; or an activation does, on the
            calibration data.
        OutputError: The output exists, or cannot be written.
        UsageError: There is no such target, `threads` is not positive, or a method needs calibration data.
        DataError: The calibration data or the statistics do not fit the model.
        SessionError: Onnxruntime cannot run the model on the calibration data.
    """
    started = time.perf_counter()
    asked = Conversion(
        recipe=load_recipe(recipe),
        target=check_target(target),
        selection=_selection(include, exclude),
        calibration=calibration,
        statistics=statistics,
        sequential=sequential,
        resume=resume,
        device=device,
        threads=threads,
        progress=progress,
    )
    asked.check()
    if output is None:
        name = re.sub(r"[^\w.-]+", "-", asked.recipe.name)
        output = Path(model).with_name(f"{Path(model).stem}-{name}.onnx")
    with stage(output, force=force, overwrite_of=Path(model)) as staging:
        if asked.recipe.is_empty:
            # A copy needs no graph, so it also keeps what the graph library would lose.
            source = guard(model)
            written = staging.commit_copy(source)
            return compose.written(compose.copied(source, asked, started), written, source.size_bytes)
        recorder = Recorder()
        with recorder.during("read"):
            loaded = load(model)
        done = convert(loaded, asked, staging, staging.scratch, recorder)
        with recorder.during("write"):
            if done.is_changed:
                done.model.ir.metadata_props.update(compose.signature(asked))
                written = staging.commit(done.model, external=loaded.external or None)
            else:
                written = staging.commit_copy(loaded)
    report = compose.carried_out(loaded, done, asked, recorder.records, started)
    return compose.written(report, written, guard(written).size_bytes)


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
        UsageError: The recipe changes the float model before it quantizes.
    """
    check_file(Path(output), ".safetensors", force=force)
    loaded = load(model)
    chosen = None if recipe is None else load_recipe(recipe)
    if chosen is not None and chosen.equalize:
        raise UsageError(
            f"recipe '{chosen.name}' changes the float model first, and its methods look at the changed one: give the "
            "data to 'onnxq quantize', or leave out the recipe"
        )
    if chosen is None:
        wanted = all_requests(find_weights(loaded.ir), loaded.ir.graph)
    else:
        made, weights = make_plan(loaded.ir, chosen, "ort")
        activations = plan_activations(loaded.ir, chosen, "ort", Selection())
        wanted = requests(made, weights, loaded.ir.graph) + activations.requests()
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
    asked = Conversion(
        recipe=load_recipe(recipe),
        target=check_target(target),
        selection=_selection(include, exclude),
        calibration=calibration,
        threads=threads,
    )
    result, recorder = onnx.ModelProto(), Recorder()
    with temporary_folder() as folder:
        done = convert(loaded, asked, Memory(), folder, recorder)
        if done.is_changed:
            done.model.ir.metadata_props.update(compose.signature(asked))
            result.ParseFromString(Form.of(done.model.ir).tobytes())
        else:
            result.CopyFrom(model)
    report = compose.carried_out(loaded, done, asked, recorder.records, started)
    return result, compose.written(report, None, result.ByteSize())


def _selection(include: Globs, exclude: Globs) -> Selection:
    return Selection(*((globs,) if isinstance(globs, str) else tuple(globs) for globs in (include, exclude)))
