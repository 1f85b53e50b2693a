"""From what was planned and done to a `Report`."""

import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxq.analysis.cautions import cautions
from onnxq.analysis.execution import execution
from onnxq.model.load import Model, Source
from onnxq.model.versions import package_versions
from onnxq.passes.conversion import Conversion, Converted
from onnxq.passes.plan import Decision, Plan
from onnxq.passes.quantize import Result
from onnxq.passes.record import PassRecord
from onnxq.passes.rounding import ActivationPlan
from onnxq.recipes import Recipe
from onnxq.recipes.write import recipe_text
from onnxq.report.contents import Activation, Entry
from onnxq.report.report import Report


def planned(
    model: Model | Source, made: Plan, activations: ActivationPlan | None, recipe: Recipe, started: float
) -> Report:
    """What would be done to a model; `started` is when `time.perf_counter` began to count."""
    return Report(
        model=str(model.path) if model.path else None,
        output=None,
        recipe=made.recipe,
        target=made.target,
        entries=tuple(_planned(each) for each in made),
        activations=() if activations is None else _activations(activations),
        model_bytes=model.size_bytes,
        output_bytes=0,
        seconds=time.perf_counter() - started,
        version=package_versions().get("onnxq", "unknown"),
        recipe_text=recipe_text(recipe),
        warnings=(*made.warnings, *(() if activations is None else activations.warnings)),
        versions={"python": platform.python_version(), **package_versions()},
    )


def carried_out(
    model: Model, done: Converted, asked: Conversion, passes: Sequence[PassRecord], started: float
) -> Report:
    """What was done to a model; where it went is for the caller to say."""
    results, (notes, warnings) = iter(done.results), _execution(done.model, asked)
    entries = (_planned(each) if each.spec is None else _carried_out(each, next(results)) for each in done.plan)
    return replace(
        planned(model, done.plan, done.activations, asked.recipe, started),
        entries=tuple(entries),
        changes=done.changes,
        passes=tuple(passes),
        notes=(*notes, *done.notes),
        warnings=(*done.warnings, *warnings),
        is_copy=not done.is_changed,
    )


def copied(source: Source, asked: Conversion, started: float) -> Report:
    """What a recipe without rules does."""
    report = planned(source, Plan(asked.recipe.name, asked.target, ()), None, asked.recipe, started)
    return replace(report, is_copy=True)


def written(report: Report, output: Path | None, size_bytes: int) -> Report:
    """A report with the file that was written, or None for a model in memory."""
    return replace(report, output=str(output) if output else None, output_bytes=size_bytes)


def signature(asked: Conversion) -> dict[str, str]:
    """What a model carries about how it was made."""
    versions = package_versions()
    return {
        "onnxq.version": versions.get("onnxq", "unknown"),
        "onnxq.versions": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "onnxq.target": asked.target,
        "onnxq.recipe": asked.recipe.model_dump_json(exclude_defaults=True),
    }


def _execution(model: Model, asked: Conversion) -> tuple[list[str], list[str]]:
    """Notes and warnings about how the quantized model runs."""
    if asked.target == "standard":
        return [
            "for interchange: onnxruntime 1.31 loads no opset 28, 1.32 runs its integers; --target ort runs in both"
        ], []
    found = execution(model)
    return found.sentences(), list(cautions(found))


def _planned(decision: Decision) -> Entry:
    spec = decision.spec
    return Entry(
        weight=decision.weight,
        label=decision.label,
        op=decision.op,
        readers=decision.readers,
        shape=decision.shape,
        size_bytes=decision.size_bytes,
        result_bytes=decision.planned_bytes,
        format=None if spec is None else "|".join(spec.format),
        spec=None if spec is None else spec.describe(),
        reason=decision.reason,
    )


def _activations(made: ActivationPlan) -> tuple[Activation, ...]:
    return tuple(
        Activation(
            tensor=each.tensor,
            op=each.op,
            readers=each.readers,
            format=None if each.spec is None else each.spec.format,
            spec=None if each.spec is None else each.spec.describe(),
            reason=each.reason,
        )
        for each in made.decisions
    )


def _carried_out(decision: Decision, result: Result) -> Entry:
    entry = _planned(decision)
    if result.skipped is not None:
        return replace(entry, result_bytes=result.size_bytes, format=None, spec=None, reason=result.skipped)
    return replace(
        entry,
        result_bytes=result.size_bytes,
        format=result.format,
        spec=None if decision.spec is None else decision.spec.describe(result.format),
        sqnr_db=result.sqnr_db,
        histogram=result.histogram,
    )
