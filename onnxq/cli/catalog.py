"""`onnxq formats` and `onnxq recipes`: what there is to choose from."""

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxq.cli.console import show, show_json
from onnxq.cli.options import AsJson

if TYPE_CHECKING:
    from rich.table import Table

    from onnxq.formats import Format, ScaleType

Plain = dict[str, Any]


def formats(as_json: AsJson = False) -> None:
    """List the number formats and the types of scales that a recipe can name."""
    from onnxq.formats import ALL_FORMATS, SCALE_TYPES

    kinds, scales = list(ALL_FORMATS.values()), list(SCALE_TYPES.values())
    if as_json:
        show_json({"formats": [_format(each) for each in kinds], "scales": [_scale(each) for each in scales]})
        return
    from rich.text import Text

    show(_format_table(map(_format, kinds)))
    show(Text("\nAny other minifloat has a name too: fp<bits>_e<e>m<m>, such as fp7_e3m3.\n"))
    show(_scale_table(map(_scale, scales)))


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Show this one as YAML: a preset, or a file.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the presets, or show one as a recipe of your own could begin."""
    from onnxq.recipes import load_recipe, preset_names

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            show_json(recipe.model_dump(mode="json"))
        else:
            show(_yaml(name).rstrip("\n"))
        return
    presets = [load_recipe(each) for each in preset_names()]
    if as_json:
        show_json([{"name": each.name, "about": each.about} for each in presets])
        return
    from onnxq.report.text import table

    listed = table({"recipe": "word", "what it does": "text"})
    for each in presets:
        listed.add_row(each.name, each.about)
    show(listed)


def _yaml(name: str) -> str:
    """The text of a preset or a file; it was read once, so it is there."""
    preset = resources.files("onnxq.recipes") / "presets" / f"{name}.yaml"
    return preset.read_text("utf-8") if preset.is_file() else Path(name).read_text("utf-8")


def _format(kind: "Format") -> Plain:
    import numpy as np

    finite = np.unique(kind.values[np.isfinite(kind.values)])
    return {
        "name": kind.name,
        "bits": kind.bits,
        "largest": kind.max_value,
        "smallest": float(finite[finite > 0].min()),
        "values": len(finite),
        "onnx_type": kind.onnx_type,
    }


def _scale(scale: "ScaleType") -> Plain:
    return {
        "name": scale.name,
        "bits": 8 * scale.dtype.itemsize,
        "onnx_type": scale.onnx_type,
        "rounding": scale.rounding,
        "two_level": scale.two_level,
    }


def _format_table(rows: Iterable[Plain]) -> "Table":
    from onnxq.report.text import table

    made = table(
        {
            "format": "word",
            "bits": "number",
            "largest": "number",
            "smallest above 0": "number",
            "values": "number",
            "ONNX type": "word",
        }
    )
    for row in rows:
        numbers = (f"{row[key]:.6g}" for key in ("bits", "largest", "smallest", "values"))
        made.add_row(row["name"], *numbers, row["onnx_type"] or "none")
    return made


def _scale_table(rows: Iterable[Plain]) -> "Table":
    from onnxq.report.text import table

    made = table({"scale": "word", "bits": "number", "ONNX type": "word", "": "text"})
    for row in rows:
        about = "power of two, rounded down" if row["rounding"] == "floor" else ""
        about = "times one fp32 for the whole tensor" if row["two_level"] else about
        made.add_row(row["name"], str(row["bits"]), row["onnx_type"], about)
    return made
