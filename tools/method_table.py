"""What each method gains at each format, and where it hurts: the table of docs/methods.md.

    python tools/method_table.py                                  # everything: about an hour on two cores
    python tools/method_table.py --formats int3,int2 --step 8     # two formats, every eighth window
    python tools/method_table.py --json methods.json

The language model of `samples/code_lm` is quantized by each method, calibrated on `calibration.npy`, and measured on
`heldout.npy`, which no method has seen. A cell is the share of the loss of rounding to nearest that the method takes
back: (nll of rtn - nll) / (nll of rtn - nll of the float model), 100 % is the float model. Below zero it hurts, and the
cell is marked with `hurts`. Products run with float activations. Outliers take 0.16 bits a weight more than the row.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from language_model import CALIBRATION, MODEL, dated, heading, heldout, nll

import onnxq
from onnxq.api import calibrate
from onnxq.recipes import Recipe, parse_recipe
from onnxq.statistics.calibration import Calibration

# What a spec says beside the method. A search of formats goes over all of the width.
FORMATS = {
    "int4": "format: uint4, granularity: group, group_size: 128, symmetric: false",
    "int4-g32": "format: uint4, granularity: group, group_size: 32, symmetric: false",
    "int4-channel": "format: uint4, symmetric: false",
    "int3": "format: int3, granularity: group, group_size: 128, scale: fp16, symmetric: false",
    "int3-channel": "format: int3, symmetric: false",
    "int2": "format: uint2, granularity: group, group_size: 32, symmetric: false",
    "fp4": "format: fp4_e2m1, granularity: group, group_size: 32, scale: fp16",
    "fp4-channel": "format: fp4_e2m1",
    "nf4": "format: nf4, granularity: group, group_size: 32, scale: fp16",
    "codebook4": "format: codebook4, granularity: group, group_size: 32, scale: fp16",
    "codebook3": "format: codebook3, granularity: group, group_size: 128, scale: fp16",
    "codebook2": "format: codebook2, granularity: group, group_size: 32, scale: fp16",
    "fp6": "format: fp6_e2m3",
    "fp6-e3m2": "format: fp6_e3m2",
}
ALL_OF_WIDTH = {"fp4_e2m1": "[fp4_e2m1, fp4_e1m2, fp4_e3m0]", "fp6_e2m3": "[fp6_e2m3, fp6_e3m2]"}
# Binary weights with so many salient ones in INT8 that they take about the bits of the row.
SALIENT = {"int4": 0.26, "int3": 0.12, "int2": 0.05}
BINARY = "format: binary, granularity: group, group_size: 128, scale: fp16"


@dataclass(frozen=True)
class Column:
    """What is done to the weights of a row.

    Attributes:
        method: Of the recipe.
        seen: What it is calibrated on: `nothing`, the `float` model, or layers one behind the other (`sequential`).
        widened: All formats of the width are candidates.
        more: Further keys of the spec.
    """

    method: str
    seen: str = "nothing"
    widened: bool = False
    more: str = ""


COLUMNS = {
    "rtn": Column("rtn"),
    "rtn, 0.5 % outliers": Column("rtn", more=", outliers: 0.005"),
    "hqq": Column("hqq"),
    "clip": Column("clip", "float"),
    "search": Column("search", "float", widened=True),
    "kmeans": Column("kmeans", "float"),
    "gptq, float statistics": Column("gptq", "float"),
    "gptq": Column("gptq", "sequential"),
    "gptq, all formats": Column("gptq", "sequential", widened=True),
    "gptq, 0.5 % outliers": Column("gptq", "sequential", more=", outliers: 0.005"),
    "pb-llm, same bits": Column("pb-llm", "sequential"),
    "erq": Column("erq", "sequential"),
    "rtn + bias": Column("rtn", "sequential"),
    "gptq + bias": Column("gptq", "sequential"),
    "gptq + norm": Column("gptq", "sequential"),
}
# What a recipe corrects behind its method.
CORRECTIONS = ("bias", "norm")


@dataclass(frozen=True)
class Cell:
    """One method at one format.

    Attributes:
        format: Row.
        method: Column.
        nll: Mean negative log-likelihood a token, in nats.
        change: Of the perplexity against the float model, as a fraction.
        share: Of the loss of rounding to nearest that is taken back; 0 for rounding to nearest.
        seconds: Calibration and conversion.
    """

    format: str
    method: str
    nll: float
    change: float
    share: float
    seconds: float


def recipe_of(row: str, column: str) -> Recipe | None:
    """What a cell is converted with; None where the method does not go with the format."""
    chosen, spec = COLUMNS[column], FORMATS[row]
    if chosen.method == "hqq" and "symmetric: false" not in spec:
        return None
    if chosen.method == "kmeans" and "codebook" not in spec:
        return None
    if chosen.method == "pb-llm":
        if row not in SALIENT:
            return None
        spec = f"{BINARY}, salient: {SALIENT[row]}"
    if chosen.widened:
        narrow = next((name for name in ALL_OF_WIDTH if name in spec), None)
        if narrow is None:
            return None
        spec = spec.replace(narrow, ALL_OF_WIDTH[narrow])
    correct = [each for each in CORRECTIONS if column.endswith(f" + {each}")]
    return parse_recipe(f"correct: {correct}\nrules:\n- weight: {{{spec}, method: {chosen.method}{chosen.more}}}")


def measure(rows: Sequence[str], columns: Sequence[str], samples: int, step: int, folder: Path) -> Iterator[Cell]:
    """Cells row by row; rounding to nearest comes first in each."""
    tokens, data = heldout(step), Calibration(CALIBRATION, samples=samples)
    statistics, output = folder / "statistics.safetensors", folder / "quantized.onnx"
    calibrate(MODEL, data, output=statistics)

    exact = nll(MODEL, tokens)
    for row in rows:
        lost = math.nan
        for column in dict.fromkeys(["rtn", *columns]):
            if (recipe := recipe_of(row, column)) is None:
                continue
            seen = COLUMNS[column].seen
            given = (
                {"statistics": statistics} if seen == "float" else {"calibration": data if seen != "nothing" else None}
            )
            started = time.perf_counter()
            onnxq.quantize(MODEL, recipe, output=output, force=True, **given)
            seconds = time.perf_counter() - started
            found = nll(output, tokens)
            lost = found - exact if column == "rtn" else lost
            yield Cell(row, column, found, math.expm1(found - exact), 1 - (found - exact) / lost, seconds)


def text(cell: Cell | None) -> str:
    """A cell of the table."""
    if cell is None:
        return ""
    if cell.method == "rtn":
        return f"+{cell.change:.2%}".replace("%", " %")
    return f"{cell.share:.0%}".replace("%", " %") + (" hurts" if cell.share < 0 else "")


def main() -> None:
    """Measure, print the table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(FORMATS), help="rows, comma-separated; by default all")
    parser.add_argument("--methods", default=";".join(COLUMNS), help="columns, separated by semicolons; by default all")
    parser.add_argument(
        "--samples", type=int, default=128, help="windows of 512 tokens to calibrate on; by default 128"
    )
    parser.add_argument("--step", type=int, default=1, help="measure every n-th held-out window; by default all 320")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    columns = list(dict.fromkeys(["rtn", *options.methods.split(";")]))
    about = dated()
    print(heading(about))
    print(f"\n| format | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}", flush=True)
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = options.formats.split(",")
        measured = measure(rows, columns, options.samples, options.step, Path(folder))
        for row, group in itertools.groupby(measured, lambda cell: cell.format):
            found = {cell.method: cell for cell in group}
            cells.extend(found.values())
            print(f"| {row} | {' | '.join(text(found.get(column)) for column in columns)} |", flush=True)
    if options.json:
        made = {"about": about, "step": options.step, "cells": [asdict(cell) for cell in cells]}
        options.json.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
