"""What a quantized cache of keys and values costs the sample model, and how many bytes it takes.

    python tools/bench_cache.py
    python tools/bench_cache.py --windows 320 --formats int8,int4 --json cache.json

Perplexity is measured as generating runs: one token a run, behind the cache, over windows of 256 held-out tokens. Bytes
are those of the cache of one sequence of 4,096 tokens, as onnxruntime holds it. Scales of channels come from 32 windows
of the calibration data. The last column is the share of the loss with scales of tokens for both that is closed; with
`int4/int8`, keys in INT4 and values in INT8, that is the share of what keys alone lose.
"""

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

import onnxq
from onnxq.model.attention import grouped_attentions
from onnxq.model.load import load
from onnxq.recipes import CachePart, CacheSpec, Recipe
from onnxq.runtime.cache import Cache, carried
from onnxq.runtime.inputs import inputs_of

SAMPLE = Path(__file__).parents[1] / "samples" / "code_lm"
TOKENS = 4096
# Granularity of keys and of values.
CASES = (("token", "token"), ("channel", "token"), ("smoothed", "token"))


@dataclass
class Row:
    """One cache."""

    form: str
    format: str
    keys: str
    values: str
    perplexity: float
    change: float
    nll_more: float
    bytes_at_4096: int
    closed: float | None = None


def cache_bytes(path: Path) -> int:
    """Bytes of the cache of one sequence."""
    model = load(path)
    opened = onnxq.session(path, providers=["cpu"])
    tensors = carried(inputs_of(opened, model), [each.name for each in opened.get_outputs()])
    return Cache(opened, tensors, 1, tokens=TOKENS, in_place=bool(grouped_attentions(model.ir.graph))).size_bytes


class Bench:
    """The measurements of one form of the model."""

    def __init__(self, form: str, folder: Path, options: argparse.Namespace) -> None:
        sys.path.insert(0, str(SAMPLE))
        from cached import cached

        self.form, self.folder, self.options = form, folder, options
        self.model = folder / f"{form}.onnx"
        self.model.write_bytes(cached(form).SerializeToString())
        self.calibration = onnxq.Calibration(np.load(SAMPLE / "calibration.npy"), sequence=256, samples=32)
        self.reference = self.perplexity(self.model)

    def perplexity(self, path: Path) -> float:
        """Behind the cache."""
        options = self.options
        found = onnxq.evaluate(
            path,
            tokens=SAMPLE / "heldout.npy",
            limit=options.windows,
            batch=32,
            cached=True,
            threads=options.threads,
            providers=["cpu"],
        )
        return found.value

    def float_row(self) -> Row:
        """The model as it is."""
        return Row(self.form, "float", "", "", self.reference, 0.0, 0.0, cache_bytes(self.model))

    def row(self, kind: str, keys: str, values: str) -> Row:
        """One way to quantize the cache."""
        of_keys, _, of_values = kind.partition("/")
        spec = CacheSpec(
            key=CachePart(format=of_keys, granularity=keys),
            value=CachePart(format=of_values or of_keys, granularity=values),
        )
        path = self.folder / "quantized.onnx"
        recipe = Recipe(name="cache", cache=spec)
        onnxq.quantize(self.model, recipe, output=path, force=True, calibration=self.calibration)
        value = self.perplexity(path)
        more = math.log(value / self.reference)
        return Row(self.form, kind, keys, values, value, value / self.reference - 1, more, cache_bytes(path))


def show(row: Row) -> None:
    """A line of the table."""
    closed = "" if row.closed is None else f"{row.closed:.0%}"
    print(f"| {row.form} | {row.format} | {row.keys} | {row.values} | {row.perplexity:.4f} | {row.change:+.2%} "
          f"| {row.bytes_at_4096:,} | {closed} |", flush=True)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=64, help="of 256 held-out tokens; there are 320")
    parser.add_argument("--formats", default="int8,int4,int4/int8,fp8_e4m3,fp6_e2m3,fp4_e2m1")
    parser.add_argument("--forms", default="plain,grouped")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, {options.windows} windows, {datetime.now(UTC).date()}\n")
    print("| form | cache | keys | values | perplexity | change | bytes at 4,096 tokens | closed |")
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms.split(","):
            bench = Bench(form, Path(folder), options)
            rows.append(bench.float_row())
            show(rows[-1])
            for kind in options.formats.split(","):
                if form == "grouped" and kind not in ("int8", "int4"):
                    continue
                by_token = None
                for keys, values in CASES if form == "plain" else (("channel", "channel"),):
                    row = bench.row(kind, keys, values)
                    by_token = by_token or row
                    if row is not by_token and by_token.nll_more > 0:
                        row.closed = 1 - row.nll_more / by_token.nll_more
                    rows.append(row)
                    show(row)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
