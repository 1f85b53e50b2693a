"""`onnxq inspect`: what is in a model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from onnxq.cli.console import progress, show, show_json
from onnxq.cli.options import AsJson, ModelFile

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from onnxq.analysis.inspect import Inspection

# Of the recipes whose fit is measured, those that a table has room for.
_COLUMNS = ("fp6-e2m3", "fp6-e3m2", "fp4", "int4")

Fit = Annotated[bool, typer.Option("--fit/--no-fit", help="Measure how well each format fits each weight.")]


def inspect(model: ModelFile, fit: Fit = True, as_json: AsJson = False) -> None:
    """Show operators, inputs and outputs, weights by type and size, and how well each format would fit them.

    The fit is the SQNR of rounding to nearest: the power of a weight over that of its error; 6 dB is one bit.
    """
    from onnxq.analysis.inspect import inspect as look

    with progress("inspecting") as advance:
        found = look(model, fit=fit, progress=advance)
    if as_json:
        show_json(found.to_dict())
    else:
        show(*_rendered(found))


def _rendered(found: "Inspection") -> "Iterator[RenderableType]":
    from rich.columns import Columns
    from rich.text import Text

    from onnxq.report.report import tally
    from onnxq.report.text import counted, size_text

    opsets = ", ".join(f"{domain} {number}" for domain, number in found.opsets.items())
    where = ", with external data" if found.external else ""
    yield Text(f"{found.path}: {size_text(found.size_bytes)}{where}; IR version {found.ir_version}, opset {opsets}")
    for label, values in (("Inputs", found.inputs), ("Outputs", found.outputs)):
        yield Text("\n".join((f"\n{label}", *(f"  {value}" for value in values))))
    yield Text(f"\n{sum(found.operators.values())} operators")
    yield Columns([f"{count:>5} {name}" for name, count in found.operators.items()], padding=(0, 2))
    if not found.weights:
        yield Text("\nNo float constants of two or more dimensions: there is nothing to quantize.")
        return
    yield Text("\nWeights" + ("; SQNR in dB of rounding to nearest, by recipe" if found.mean_sqnr_db() else ""))
    yield _weights(found)
    if obstacles := [str(each.obstacle) for each in found.weights if each.obstacle]:
        yield Text(f"\nCannot be quantized: {len(obstacles)} of {len(found.weights)} weights")
        yield counted(tally(obstacles))
    if found.mean_sqnr_db():
        yield Text("\nAll weights together")
        yield _fits(found)


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
            **dict.fromkeys(shown, "number"),
        }
    )
    for each in found.weights:
        fits = each.sqnr_db or {}
        made.add_row(
            Name(each.name),
            op_text(each.op),
            each.dtype.lower(),
            shape_text(each.shape),
            f"{each.size_bytes:,}",
            *(f"{fits[recipe]:.1f}" if recipe in fits else "" for recipe in shown),
        )
    total = sum(each.size_bytes for each in found.weights)
    made.add_row(f"{len(found.weights)} weights", "", "", "", f"{total:,}", style="bold")
    return made


def _fits(found: "Inspection") -> "Table":
    from onnxq.report.text import table

    made = table({"recipe": "word", "SQNR dB": "number"})
    for recipe, ratio in found.mean_sqnr_db().items():
        made.add_row(recipe, f"{ratio:.1f}")
    return made
