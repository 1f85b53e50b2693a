"""Print the part of docs/benchmarks.md about decoding, from what the benchmarks wrote.

python tools/decode_page.py 8B.json 1B.json 1B-EMBEDDING.json CONVERSION.json >> docs/benchmarks.md
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = """
## Decoding
One token a sequence in decoders of the shapes of LLaMA 3 8B and LLaMA 3.2 1B with
[random weights](../samples/shapes/README.md) and a cache of so many tokens, all float16, attention by onnxruntime's
`GroupQueryAttention`. {date}, {device}, onnxruntime {onnxruntime}, steps replayed as CUDA graphs. The models of a table
are open in one process and take turns: `python tools/bench_decode.py MODEL --recipes fp6,fp6-e3m2,fp4,int4 --ort-int4
--head --providers cuda --cuda-graph --batch 1,8,32 --context 512,4096 --steps {steps} --rounds {rounds} --profile
1,32`. The median step of the fastest round counts; feeding a step and waiting for it are part of it, sampling is not.

onnxruntime's int4 is `MatMulNBits` as its quantizer makes it (symmetric, blocks of 32), and the same file with the
session's option `ep.cuda.fpa_intb_gemm`. The output head of the 8B shape is quantized in all but the float16 model;
that of the 1B shape is its embedding, and quantized with it in the last table alone (`--embedding`). Of weights as
Gaussian as these, `fp6` makes E2M3.

A cell: milliseconds a step (tokens a second; times as fast as float16).
"""
MEMORY = """Files, memory on the GPU after a first step with an empty cache, and seconds to open the model from the page
cache. Kernels that are compiled for the first time add a few seconds:
"""
PROFILE = """Where a step goes, in microseconds, as CUPTI records it, which takes some time of its own: products with
weights, attention (with rotation and cache), all other kernels, gaps between kernels, and the rest of the step.
"""
CONVERSION = """### Converting it
`python tools/bench_conversion.py 8b.onnx -o 8b-fp6.onnx --target ort-cuda`: {recipe}, on {processors} cores of
that machine.

| | |
|---|---|
| the float16 model | {gigabytes:.1f} GB |
| copying it, to the disk | {copy_seconds:.1f} s |
| `onnxq quantize` | {seconds:.1f} s, {times_copying:.1f} times as long |
| highest anonymous memory | {anonymous_gib:.2f} GiB |
| highest resident memory, with what is mapped of the model | {resident_gib:.2f} GiB |
"""
PROFILED = ((1, 512), (1, 4096), (32, 512), (32, 4096))
PARTS = ("matmul", "attention", "rest", "gaps", "outside")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def called(model: str) -> str:
    """A model's name as tables show it."""
    return {"float": "float16"}.get(model, model if model.startswith("onnxruntime") else f"`{model}`")


def speeds(found: dict[str, Any]) -> str:
    """A line a model, a column a batch and context."""
    cells = {(row["model"], row["batch"], row["context"]): row for row in found["rows"]}
    cases = list(dict.fromkeys((row["batch"], row["context"]) for row in found["rows"]))
    rows = []
    for each in found["models"]:
        line = [called(each["name"])]
        for case in cases:
            row = cells[each["name"], *case]
            line.append(f"{row['milliseconds']:.2f} ({row['tokens_per_second']:,.0f}; {row['times_float']:.2f})")
        rows.append(line)
    return table(["", *(f"batch {batch}, {context:,} tokens" for batch, context in cases)], rows)


def memory(found: dict[str, Any]) -> str:
    """A line a model."""
    rows = (
        (called(each["name"]), *(f"{each[key] / 1e9:.2f} GB" for key in ("file_bytes", "device_bytes")),
         f"{each['load_seconds']:.1f}")
        for each in found["models"]
    )  # fmt: skip
    return table(("", "file", "GPU", "seconds"), rows)


def parts(found: dict[str, Any]) -> str:
    """A line a model, batch and context."""
    rows = (
        (called(each["model"]), f"{each['batch']}, {each['context']:,}", *(f"{each[part]:,.0f}" for part in PARTS))
        for case in PROFILED
        for each in found["profiles"]
        if (each["batch"], each["context"]) == case
    )
    return table(("", "batch, tokens", *PARTS), rows)


def main() -> None:
    """Read and print."""
    *shapes, conversion = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    print(HEAD.format(**shapes[0]["about"]))
    for found in shapes:
        embedding = ", embedding and head too" if "embedding" in found["about"].get("roles", []) else ""
        print(f"### {found['about']['model'].upper()}{embedding}")
        if found["about"]["rounds"] != shapes[0]["about"]["rounds"]:
            print(f"In {found['about']['rounds']} rounds.\n")
        print(speeds(found), MEMORY, memory(found), sep="\n")
        if found is shapes[0]:
            print(PROFILE, parts(found), sep="\n")
    sizes = {"gigabytes": conversion["bytes"] / 1e9, "anonymous_gib": conversion["anonymous_mib"] / 1024}
    print(CONVERSION.format(**conversion, **sizes, resident_gib=conversion["resident_mib"] / 1024), end="")


if __name__ == "__main__":
    main()
