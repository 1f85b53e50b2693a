"""`onnxq inspect`: what is in a model."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import (
    AsJson,
    CalibrationBatch,
    CalibrationData,
    CalibrationSamples,
    CalibrationSequence,
    ModelFile,
    Providers,
    provider_list,
)
from onnxq.errors import number_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from onnxq.analysis.inspect import Inspection

# Of the recipes whose fit is measured, those that a table has room for.
_COLUMNS = ("fp6-e2m3", "fp6-e3m2", "fp4", "int4")

Fit = Annotated[
    bool, typer.Option("--fit/--no-fit", help="Measure how the values of each weight lie, and how each format fits.")
]


def inspect(
    model: ModelFile,
    fit: Fit = True,
    calib: CalibrationData = None,
    sequence: CalibrationSequence = 512,
    samples: CalibrationSamples = 128,
    calib_batch: CalibrationBatch = 4,
    providers: Providers = None,
    as_json: AsJson = False,
) -> None:
    """Show operators, inputs and outputs, weights by type and size, how each format would fit, and what stands out.

    The fit is the SQNR of rounding to nearest: the power of a weight over that of its error; 6 dB is one bit. With
    --calib, activations are looked at too. Of a quantized file, formats and bits of each weight are shown.
    """
    from onnxq.analysis.inspect import inspect as look
    from onnxq.statistics.calibration import Calibration

    with progress("inspecting") as advance:
        calibration = calib and Calibration(
            calib,
            sequence=sequence,
            samples=samples,
            batch=calib_batch,
            providers=provider_list(providers),
            progress=lambda done, total: advance(done, total, "calibrating"),
        )
        found = look(model, fit=fit, calibration=calibration or None, progress=advance)
    if as_json:
        show_json(found.to_dict())
    else:
        show(*_rendered(found))


def _rendered(found: "Inspection") -> "Iterator[RenderableType]":
    from rich.columns import Columns
    from rich.text import Text

    from onnxq.report.contents import tally
    from onnxq.report.text import counted, size_text

    opsets = ", ".join(f"{domain} {number}" for domain, number in found.opsets.items())
    where = ", with external data" if found.external else ""
    yield Text(f"{found.path}: {size_text(found.size_bytes)}{where}; IR version {found.ir_version}, opset {opsets}")
    for label, values in (("Inputs", found.inputs), ("Outputs", found.outputs)):
        yield Text("\n".join((f"\n{label}", *(f"  {value}" for value in values))))
    yield Text(f"\n{number_of(sum(found.operators.values()), 'operator')}")
    yield Columns([f"{count:>5} {name}" for name, count in found.operators.items()], padding=(0, 2))
    if found.made_by:
        yield Text(f"\nMade by onnxq {found.made_by.get('version', '?')} for target {found.made_by.get('target', '?')}")
    if found.stored:
        yield Text("\nQuantized weights")
        yield _stored(found)
    if found.weights:
        yield Text(
            "\nFloat weights" + ("; SQNR in dB of rounding to nearest, by recipe" if found.mean_sqnr_db() else "")
        )
        yield _weights(found)
    elif not found.stored:
        yield Text("\nNo float constants of two or more dimensions: there is nothing to quantize.")
    if obstacles := [str(each.obstacle) for each in found.weights if each.obstacle]:
        yield Text(f"\nCannot be quantized: {len(obstacles)} of {number_of(len(found.weights), 'weight')}")
        yield counted(tally(obstacles))
    if found.mean_sqnr_db():
        yield Text("\nAll float weights together, SQNR in dB")
        yield _fits(found)
        yield Text()
        yield _granularities(found)
    if found.activations:
        yield Text("\nActivations that meet weights")
        yield _activations(found)
    if found.remedies:
        yield Text("\nWhat stands out")
        for name, texts in found.remedies.items():
            yield Text(f"  {name}: {'; '.join(texts)}")


def _stored(found: "Inspection") -> "Table":
    from onnxq.report.text import Name, op_text, shape_text, table

    made = table(
        {
            "weight": "name",
            "op": "word",
            "shape": "word",
            "format": "word",
            "scales": "word",
            "bytes": "number",
            "bits": "number",
            "bits each": "number",
        }
    )
    for each in found.stored:
        zero = "" if each.symmetric else ", zero points"
        beside = f", {each.outliers:,} outliers" if each.outliers else ""
        scales = f"{each.granularity}, {each.scale}{zero}{beside}"
        size, bits = f"{each.size_bytes:,}", f"{each.bits_each:.2f}"
        shape = shape_text(each.shape)
        made.add_row(Name(each.label), op_text(each.op), shape, each.format, scales, size, str(each.bits), bits)
    total = sum(each.size_bytes for each in found.stored)
    elements = sum(math.prod(each.shape) for each in found.stored)
    mean = f"{8 * total / elements:.2f}"
    made.add_row(number_of(len(found.stored), "weight"), "", "", "", "", f"{total:,}", "", mean, style="bold")
    return made


def _weights(found: "Inspection") -> "Table":
    from onnxq.report.text import Name, op_text, shape_text, table

    shown = _COLUMNS if found.mean_sqnr_db() else ()
    made = table(
        {
            "weight": "name",
            "op": "word",
            "type": "word",
            "shape": "word",
            "bytes": "number",
            **dict.fromkeys(("largest", "kurtosis", *shown) if shown else (), "number"),
        }
    )
    for each in found.weights:
        spread = (f"{each.spread.absmax:.3g}", f"{each.spread.kurtosis:.1f}") if each.spread else ("", "")
        made.add_row(
            Name(each.label),
            op_text(each.op),
            each.dtype.lower(),
            shape_text(each.shape),
            f"{each.size_bytes:,}",
            *(spread if shown else ()),
            *(f"{each.sqnr_db[recipe]:.1f}" if recipe in each.sqnr_db else "" for recipe in shown),
        )
    total = sum(each.size_bytes for each in found.weights)
    made.add_row(number_of(len(found.weights), "weight"), "", "", "", f"{total:,}", style="bold")
    return made


def _fits(found: "Inspection") -> "Table":
    from onnxq.report.text import table

    made = table({"recipe": "word", "SQNR dB": "number"})
    for recipe, ratio in found.mean_sqnr_db().items():
        made.add_row(recipe, f"{ratio:.1f}")
    return made


def _granularities(found: "Inspection") -> "Table":
    from onnxq.report.text import table

    rows = found.granularity_db()
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    made = table({"format, a scale for each": "word", **dict.fromkeys(names, "number")})
    for kind, row in rows.items():
        made.add_row(kind, *(f"{row[name]:.1f}" if name in row else "" for name in names))
    return made


def _activations(found: "Inspection") -> "Table":
    from onnxq.report.text import Name, table

    made = table(
        {
            "activation": "name",
            "meets": "name",
            "smallest": "number",
            "largest": "number",
            "largest / 99.9th percentile": "number",
            "channels": "number",
            "outliers": "number",
        }
    )
    for each in found.activations:
        spike, outliers = f"{each.spike:.1f}", str(each.outlier_channels)
        seen = f"{each.low:.3g}", f"{each.high:.3g}", spike, str(each.channels), outliers
        made.add_row(Name(each.tensor), Name(", ".join(each.labels)), *seen)
    return made
