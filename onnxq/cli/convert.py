"""`onnxq quantize` and `onnxq plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import (
    AsJson,
    CalibrationBatch,
    CalibrationCache,
    CalibrationData,
    CalibrationSamples,
    CalibrationSequence,
    Exclude,
    Include,
    ModelFile,
    NonFinite,
    NonFinitePolicy,
    Providers,
    RecipeName,
    TargetName,
    Threads,
    provider_list,
)
from onnxq.errors import OutputError, UsageError
from onnxq.model.replacing import check_ending

if TYPE_CHECKING:
    from onnxq.recipes import Recipe
    from onnxq.report import Report
    from onnxq.report.findings import LayerLosses, Tradeoff

_PAGES = (".html", ".htm")

Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="OUT", help="The .onnx file to write.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done to each weight, and write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
ReportFile = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write what was done to each weight: a page to look at where the name ends in .html, JSON where in .json.",
        show_default=False,
    ),
]
Findings = Annotated[
    Path | None,
    typer.Option(
        "--findings",
        metavar="FILE",
        help="JSON of 'onnxq sensitivity' or 'onnxq allocate', to be shown on the page of --report.",
        show_default=False,
    ),
]
StatisticsFile = Annotated[
    Path | None,
    typer.Option(
        "--stats", metavar="FILE", help="Statistics of 'onnxq calibrate', in place of --calib.", show_default=False
    ),
]
Sequential = Annotated[
    bool | None,
    typer.Option(
        "--sequential/--at-once",
        help="Calibrate layer by layer, each behind the quantized layers before it, or all on the float model. By "
        "default layer by layer for methods that need data.",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FOLDER",
        help="Keep solved layers in this folder, and go on from there after an interruption.",
        show_default=False,
    ),
]


def quantize(
    model: ModelFile,
    output: Output = None,
    recipe: RecipeName = "fp6",
    target: TargetName = "ort",
    include: Include = None,
    exclude: Exclude = None,
    non_finite: NonFinitePolicy = None,
    dry_run: DryRun = False,
    force: Force = False,
    report_file: ReportFile = None,
    findings: Findings = None,
    calib: CalibrationData = None,
    sequence: CalibrationSequence = 512,
    samples: CalibrationSamples = 128,
    calib_batch: CalibrationBatch = 4,
    calib_cache: CalibrationCache = None,
    statistics: StatisticsFile = None,
    sequential: Sequential = None,
    resume: Resume = None,
    providers: Providers = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write a smaller model: each weight in the format the recipe gives it.

    The output appears complete or not at all.
    """
    if dry_run:
        if report_file:
            raise UsageError("--dry-run writes nothing: leave out --report, or take the JSON of 'onnxq plan --json'")
        plan(model, recipe, target, include, exclude, non_finite, as_json)
        return
    if output is None:
        raise UsageError("where should the model go? give -o OUT.onnx (or --dry-run to write nothing)")
    if calib is None and calib_cache is not None:
        raise UsageError("--calib-cache keeps what --calib finds: give --calib DATA too, or --stats FILE alone")
    from onnxq import api
    from onnxq.statistics.calibration import Calibration

    chosen = _recipe(recipe, non_finite)
    if report_file:
        _check_report(report_file, model, output, force=force)
    shown = _findings(findings, report_file)
    with progress("quantizing") as advance:
        calibration = calib and Calibration(
            calib,
            sequence=sequence,
            samples=samples,
            batch=calib_batch,
            providers=provider_list(providers),
            cache=calib_cache,
            progress=lambda done, total: advance(done, total, "calibrating"),
        )
        report = api.quantize(
            model,
            chosen,
            output=output,
            target=target,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            force=force,
            calibration=calibration or None,
            statistics=statistics,
            sequential=sequential,
            resume=resume,
            threads=threads,
            progress=lambda _, done, total: advance(done, total, "writing" if done == total else None),
        )
    if report_file:
        _write_report(report, report_file, shown)
    _show(report, as_json)


def plan(
    model: ModelFile,
    recipe: RecipeName = "fp6",
    target: TargetName = "ort",
    include: Include = None,
    exclude: Exclude = None,
    non_finite: NonFinitePolicy = None,
    as_json: AsJson = False,
) -> None:
    """Show what 'quantize' would do to each weight, or why it would stay as it is.

    No weight is read and nothing is written.
    """
    from onnxq import api

    chosen = _recipe(recipe, non_finite)
    report = api.plan(model, chosen, target=target, include=tuple(include or ()), exclude=tuple(exclude or ()))
    _show(report, as_json)


def _recipe(name: str, non_finite: NonFinite | None) -> "Recipe":
    from onnxq.recipes import load_recipe

    recipe = load_recipe(name)
    return recipe if non_finite is None else recipe.model_copy(update={"non_finite": non_finite.value})


def _show(report: "Report", as_json: bool) -> None:
    from onnxq.report.terminal import planned, summary

    if as_json:
        show_json(report.to_dict())
    else:
        show(*(summary(report) if report.output else planned(report)))


def _check_report(path: Path, model: Path, output: Path, *, force: bool) -> None:
    """Find out before the work whether the report can be written."""
    if path.resolve() in (model.resolve(), output.resolve()):
        raise OutputError(f"--report '{path}' is the model itself; give another file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--report '{path}': its folder does not exist; create it first")
    if path.is_dir() or (path.exists() and not force):
        raise OutputError(f"--report '{path}' exists; pass --force to replace a file")
    check_ending(path, *_PAGES, ".json")


def _is_page(report_file: Path | None) -> bool:
    return report_file is not None and report_file.suffix.lower() in _PAGES


def _findings(path: Path | None, report_file: Path | None) -> "tuple[LayerLosses, Tradeoff | None] | None":
    if path is None:
        return None
    if not _is_page(report_file):
        raise UsageError("--findings are shown on a page: give --report FILE.html too")
    from onnxq.report.findings import read_findings

    return read_findings(path)


def _write_report(report: "Report", path: Path, found: "tuple[LayerLosses, Tradeoff | None] | None") -> None:
    losses, tradeoff = found or (None, None)
    try:
        if _is_page(path):
            report.write_html(path, losses=losses, tradeoff=tradeoff)
        else:
            report.write(path)
    except OutputError as error:
        raise OutputError(f"'{report.output}' is written, but: {error}") from error
