"""How fast a language model with a cache decodes: tokens a second of presets beside the float model, in one run.

    python tools/bench_decode.py                                # the sample model, on one thread
    python tools/bench_decode.py model.onnx --recipes fp6,int4 --batch 1,8,32 --context 512,4096 --json decode.json
    python tools/bench_decode.py model.onnx --providers cuda --cuda-graph --ort-int4 --profile 1,32 --folder models

A step reads one token a sequence behind a cache of so many tokens (what a step costs does not depend on them). All
models are opened first, and take turns round by round, so that whatever else the machine does meets all of them; the
median step of the fastest round counts. `--ort-int4` adds what onnxruntime's own quantizer makes (MatMulNBits), and on
CUDA the same model with its option `ep.cuda.fpa_intb_gemm`. `--json` is written after each row, and
tools/decode_page.py makes a page of it.
"""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
from decode_models import ORT_INT4, add_roles, prepared
from decode_profile import profile
from decoding import Decoder, Opening

from onnxq.runtime.native import native_library

SAMPLE = Path(__file__).parents[1] / "samples" / "code_lm"
_FPA_INTB = {"ep.cuda.fpa_intb_gemm": "1"}


@dataclass
class Row:
    """One model at one batch and context."""

    model: str
    batch: int
    context: int
    milliseconds: float
    tokens_per_second: float
    times_float: float = 1.0


def sample_with_cache(folder: Path) -> Path:
    """The sample model with a cache, of standard operators."""
    sys.path.insert(0, str(SAMPLE))
    from cached import cached

    path = folder / "code_lm.onnx"
    path.write_bytes(cached("plain").SerializeToString())
    return path


def opened(models: dict[str, Path], opening: Opening) -> list[Decoder]:
    """All models."""
    decoders = []
    for name, path in models.items():
        decoders.append(Decoder(name, path, opening))
        if name == ORT_INT4 and opening.on_gpu:
            decoders.append(Decoder(f"{ORT_INT4}, fpA_intB", path, opening, _FPA_INTB))
    return decoders


def measure(decoders: list[Decoder], batch: int, context: int, options: argparse.Namespace) -> list[Row]:
    """One row a model; the first is the float one."""
    for each in decoders:
        each.begin(batch, context, options.steps, like=decoders[0])
    rounds = [[median(each.times(options.steps)) for each in decoders] for _ in range(options.rounds)]
    best = [min(times) for times in zip(*rounds, strict=True)]
    return [
        Row(each.name, batch, context, 1000 * seconds, batch / seconds, best[0] / seconds)
        for each, seconds in zip(decoders, best, strict=True)
    ]


def about(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where, and with what."""
    device = platform.processor() or platform.machine()
    if options.providers.startswith("cuda"):
        import cupy

        device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return {
        "model": "code_lm" if options.model is None else options.model.stem,
        "date": str(datetime.now(UTC).date()),
        "device": device,
        "onnxruntime": onnxruntime.__version__,
        "threads": options.threads,
        "cuda_graph": options.cuda_graph,
        "roles": options.roles,
        "steps": options.steps,
        "rounds": options.rounds,
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="a model with a cache; by default the sample")
    parser.add_argument("--recipes", default="fp6,fp4,int4", help="presets or .yaml files, separated by commas")
    parser.add_argument("--target", help="of the recipes; by default ort, on CUDA ort-cuda")
    add_roles(parser)
    parser.add_argument("--ort-int4", action="store_true", help="add onnxruntime's own int4")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--context", default="64,512", help="tokens in the cache")
    parser.add_argument("--steps", type=int, default=32, help="tokens of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--providers", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accuracy-level", type=int, help="of onnxruntime's own low-bit kernels")
    parser.add_argument("--cuda-graph", action="store_true")
    parser.add_argument("--profile", default="", help="batches for which to say where time goes; CUDA and PyTorch")
    parser.add_argument("--folder", type=Path, help="where models are made, and found again; else a temporary one")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    opening = Opening(
        tuple(options.providers.split(",")), options.threads, options.accuracy_level, cuda_graph=options.cuda_graph
    )
    target = options.target or ("ort-cuda" if opening.on_gpu else "ort")
    found: dict[str, Any] = {"about": about(options), "models": [], "rows": [], "profiles": []}

    def keep(kind: str, entries: list[dict[str, Any]]) -> None:
        found[kind] += entries
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")

    native = native_library()
    print(", ".join(f"{key} {value}" for key, value in found["about"].items()))
    print(f"native kernels: {native.problem or native.instruction_sets[0]}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        model = options.model or sample_with_cache(folder)
        recipes = list(filter(None, options.recipes.split(",")))
        models = prepared(model, folder, recipes, target, roles=tuple(options.roles), ort_int4=options.ort_int4)
        decoders = opened(models, opening)
        facts = ("name", "file_bytes", "load_seconds", "device_bytes")
        keep("models", [{fact: getattr(each, fact) for fact in facts} for each in decoders])
        for each in decoders:
            print(f"{each.name}: {each.file_bytes / 1e6:,.1f} MB, loaded in {each.load_seconds:.1f} s, "
                  f"{each.device_bytes / 1e9:.2f} GB on the GPU", flush=True)  # fmt: skip
        print("| model | batch | context | ms a step | tokens/s | times float |\n|---|---|---|---|---|---|")
        cases = [(int(b), int(c)) for b in options.batch.split(",") for c in options.context.split(",")]
        for case in cases:
            rows = measure(decoders, *case, options)
            for row in rows:
                print(f"| {row.model} | {row.batch} | {row.context} | {row.milliseconds:.3f} "
                      f"| {row.tokens_per_second:,.0f} | {row.times_float:.2f} |", flush=True)  # fmt: skip
            keep("rows", [asdict(row) for row in rows])
        if options.profile:
            # Last: CUPTI stays with the process and takes time of its own.
            batches = [int(batch) for batch in options.profile.split(",")]
            profiled(decoders, [case for case in cases if case[0] in batches], found["rows"], options, keep)


def profiled(
    decoders: list[Decoder], cases: list[tuple[int, int]], rows: list[dict[str, Any]], options: Any, keep: Any
) -> None:
    """Where the time of each row goes."""
    measured = {(row["model"], row["batch"], row["context"]): row["milliseconds"] for row in rows}
    print("| model | batch | context | matmul | attention | rest | gaps | outside (us) |\n" + "|---" * 8 + "|")
    for batch, context in cases:
        for each in decoders:
            each.begin(batch, context, options.steps, like=decoders[0])
        for each in decoders:
            parts = profile(each, measured[each.name, batch, context])
            keep("profiles", [{"model": each.name, "batch": batch, "context": context, **asdict(parts)}])
            times = (parts.matmul, parts.attention, parts.rest, parts.gaps, parts.outside)
            print(f"| {each.name} | {batch} | {context} | {' | '.join(f'{time:.0f}' for time in times)} |", flush=True)


if __name__ == "__main__":
    main()
