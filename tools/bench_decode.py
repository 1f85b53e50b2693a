"""How fast a language model with a cache decodes: tokens a second of presets beside the float model, in one run.

    python tools/bench_decode.py                                # the sample model, on one thread
    python tools/bench_decode.py model.onnx --recipes fp6,int4 --batch 1,8,32 --context 512,4096 --json decode.json
    python tools/bench_decode.py model.onnx --providers cuda --cuda-graph --ort-int4

A step reads one token a sequence behind a cache of so many tokens (zeros: what a step costs does not depend on them).
All models are opened first, and take turns round by round, so that whatever else the machine does meets all of them;
the median step of the fastest round counts. `--ort-int4` adds what onnxruntime's own quantizer makes (MatMulNBits).
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

import onnxq
from onnxq.model.attention import grouped_attentions, table_rows
from onnxq.model.load import load
from onnxq.runtime.cache import Cache, Carried, carried, is_past
from onnxq.runtime.inputs import inputs_of
from onnxq.runtime.native import native_library

SAMPLE = Path(__file__).parents[1] / "samples" / "code_lm"


@dataclass
class Row:
    """One model at one batch and context."""

    model: str
    batch: int
    context: int
    milliseconds: float
    tokens_per_second: float
    times_float: float = 1.0


class Decoder:
    """An open model that decodes."""

    def __init__(self, name: str, path: Path, options: argparse.Namespace) -> None:
        before, start = device_bytes(options), time.perf_counter()
        loaded = load(path)
        self.name, self.file_bytes = name, loaded.size_bytes
        attentions = grouped_attentions(loaded.ir.graph)
        self.in_place, self.longest = bool(attentions), table_rows(attentions[0]) if attentions else None
        self.opened = onnxq.session(
            path,
            providers=options.providers.split(","),
            threads=options.threads,
            accuracy_level=options.accuracy_level,
            cuda_graph=options.cuda_graph,
        )
        self.load_seconds = time.perf_counter() - start
        self.device_bytes = device_bytes(options) - before
        inputs = inputs_of(self.opened, loaded)
        self.inputs = [each for each in inputs if not is_past(each.name)]
        outputs = {output.name: output.shape for output in self.opened.get_outputs()}
        self.tensors: tuple[Carried, ...] = carried(inputs, list(outputs))
        self.vocabulary = int(outputs["logits"][2])
        self.graph = options.cuda_graph
        if not self.tensors:
            sys.exit(f"{path} has no cache (past_key_values.N.key): export it with one")

    def round(self, batch: int, context: int, steps: int) -> float:
        """Median seconds of a step; the cache is new each time."""
        capacity = context + steps + 2
        if self.longest is not None and capacity > self.longest:
            sys.exit(f"{self.name} takes {self.longest} tokens, {capacity} are asked for")
        cache = Cache(
            self.opened, self.tensors, batch, tokens=capacity if self.in_place else context, in_place=self.in_place
        )
        times = []
        for step in range(steps + 2):
            feed = self.feed(batch, context + step + 1, capacity if self.graph else None)
            start = time.perf_counter()
            if self.graph:
                cache.replay("logits", feed, self.vocabulary)
            else:
                cache.run("logits", feed)
            times.append(time.perf_counter() - start)
        return median(times[2:])

    def feed(self, batch: int, tokens: int, width: int | None) -> dict[str, Any]:
        """The inputs of a step that reads the last of so many tokens."""
        mask = np.zeros((batch, width or tokens))
        mask[:, :tokens] = 1
        made = {
            "input_ids": np.full((batch, 1), tokens % 1000),
            "attention_mask": mask,
            "position_ids": np.full((batch, 1), tokens - 1),
        }
        return {each.name: made[each.name].astype(each.dtype) for each in self.inputs}


def device_bytes(options: argparse.Namespace) -> int:
    """Bytes that are taken on the GPU; 0 on the CPU."""
    if not options.providers.startswith("cuda"):
        return 0
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)


def sample_with_cache(folder: Path) -> Path:
    """The sample model with a cache, of standard operators."""
    sys.path.insert(0, str(SAMPLE))
    from cached import cached

    path = folder / "code_lm.onnx"
    path.write_bytes(cached("plain").SerializeToString())
    return path


def ort_int4(model: Path, folder: Path) -> Path:
    """What onnxruntime's quantizer makes: MatMulNBits of 4 bits, symmetric, in blocks of 32, accuracy level 4."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(str(model), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    path = folder / "ort-int4.onnx"
    quantizer.model.save_model_to_file(str(path), use_external_data_format=True)
    return path


def prepared(options: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The float model, and what is made of it, by name."""
    model = options.model or sample_with_cache(folder)
    models = {"float": model}
    for recipe in filter(None, options.recipes.split(",")):
        models[recipe] = folder / f"{Path(recipe).stem}.onnx"
        onnxq.quantize(model, recipe, output=models[recipe])
    if options.ort_int4:
        models["onnxruntime int4"] = ort_int4(model, folder)
    return models


def measure(decoders: list[Decoder], batch: int, context: int, options: argparse.Namespace) -> list[Row]:
    """One row a model; the first is the float one."""
    best = [min(times) for times in zip(*rounds(decoders, batch, context, options), strict=True)]
    return [
        Row(each.name, batch, context, 1000 * seconds, batch / seconds, best[0] / seconds)
        for each, seconds in zip(decoders, best, strict=True)
    ]


def rounds(decoders: list[Decoder], batch: int, context: int, options: argparse.Namespace) -> list[list[float]]:
    """Seconds of a step of each model, round by round."""
    return [[each.round(batch, context, options.steps) for each in decoders] for _ in range(options.rounds)]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model with a cache; by default the sample")
    parser.add_argument("--recipes", default="fp6,fp4,int4", help="presets or .yaml files, separated by commas")
    parser.add_argument("--ort-int4", action="store_true", help="add onnxruntime's own int4")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--context", default="64,512", help="tokens in the cache")
    parser.add_argument("--steps", type=int, default=32, help="tokens of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--providers", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accuracy-level", type=int, help="of onnxruntime's own low-bit kernels")
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--folder", type=Path, help="where models are made; by default a temporary folder")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    native = native_library()
    print(f"onnxruntime {onnxruntime.__version__}, {platform.processor() or platform.machine()}, "
          f"{options.providers}, {options.threads} threads, {datetime.now(UTC).date()}; "
          f"native kernels: {native.problem or native.instruction_sets[0]}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        models = prepared(options, Path(folder))
        decoders = [Decoder(name, path, options) for name, path in models.items()]
        rows = []
        print("| model | MB | batch | context | ms a step | tokens/s | times float |\n|---|---|---|---|---|---|---|")
        for batch in map(int, options.batch.split(",")):
            for context in map(int, options.context.split(",")):
                for row, each in zip(measure(decoders, batch, context, options), decoders, strict=True):
                    rows.append(row)
                    print(f"| {row.model} | {each.file_bytes / 1e6:.1f} | {batch} | {context} | {row.milliseconds:.3f} "
                          f"| {row.tokens_per_second:,.0f} | {row.times_float:.2f} |")  # fmt: skip
        if options.providers.startswith("cuda"):
            for each in decoders:
                print(f"{each.name}: loaded in {each.load_seconds:.1f} s, {each.device_bytes / 1e9:.2f} GB on the GPU")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
