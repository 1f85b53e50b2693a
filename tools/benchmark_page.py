"""Print docs/benchmarks.md from what the benchmarks of the GPU kernels wrote.

python tools/benchmark_page.py BENCH.json SESSION.json > docs/benchmarks.md
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]
_FEW = 64

HEAD = """# Benchmarks: GPU
Products y = x @ W with packed weights, W [K, N] and x [M, K], in onnxq's [GPU kernels](gpu_kernels.md), beside
PyTorch's cuBLAS and onnxruntime's own `MatMul` (float16) and `MatMulNBits` (4 bits, blocks of 128). {date},
{device}, PyTorch {torch}, CUDA {cuda}, onnxruntime {onnxruntime}; one run of `tools/bench_kernels.py`. Weights rotate
through more than 200 MB, three times the L2 cache; times are medians of CUDA-graph replays, ours and right behind them
those of cuBLAS, each after 20 ms of its own, from 128 rows on after 50, when [power](gpu_kernels.md#power) has set the
clocks; data is random; every result was compared with float64. *Limit* is the time to read the weight once at 4.3 TB/s.

A cell: microseconds (per cent of the limit; times faster than cuBLAS float16 / than onnxruntime's `MatMul` / than its
`MatMulNBits`).
"""
WITHIN = """## Within onnxruntime
Sixteen products one after the other in a session (onnxruntime {onnxruntime}, `enable_cuda_graph`), each with a weight
of its own, beside the bare kernels in the same order; microseconds a product, one run of `tools/bench_session.py`.
"""


def cell(line: Line) -> str:
    """One product."""
    beside = ("cublas_us", "ort_us", "ort_4bit_us")
    ratios = " / ".join(f"{line[name] / line['us']:.2f}" for name in beside if name in line)
    share = f"{line['limit_us'] / line['us']:.0%}; " if line["M"] <= _FEW else ""
    return f"{line['us']:.1f} ({share}{ratios})"


def kind_of(line: Line) -> str:
    """What kind of product it is, in words."""
    scales = f"groups of {line['group']}" if line["group"] else "one scale a column"
    return f"{line['format']}, {scales}, {line['dtype']}"


def rows_of(lines: Sequence[Line]) -> list[str]:
    """A table with a line for each shape and a column for each M."""
    found: dict[str, dict[int, str]] = {}
    for line in lines:
        found.setdefault(f"{line['N']}x{line['K']}", {})[line["M"]] = cell(line)
    counts = sorted({line["M"] for line in lines})
    head = "| | " + " | ".join(f"M = {M}" for M in counts) + " |"
    body = [f"| {shape} | " + " | ".join(cells.get(M, "") for M in counts) + " |" for shape, cells in found.items()]
    return [head, "|---" * (len(counts) + 1) + "|", *body, ""]


def main() -> None:
    """Read and print."""
    bench, session = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:3])
    lines = bench["lines"]
    print(HEAD.format(**bench["about"]))
    for kind in dict.fromkeys(kind_of(line) for line in lines):
        alike = [line for line in lines if kind_of(line) == kind]
        print(f"## {kind}")
        for some in (lambda M: M <= _FEW, lambda M: M > _FEW):
            print(*rows_of([line for line in alike if some(line["M"])]), sep="\n")
    worst = max(line["error"] for line in lines if line["dtype"] == "float16")
    print(f"The largest relative error with float16 is {worst:.1e}; rounding the result alone is 2e-4.\n")
    print(WITHIN.format(**session))
    print("| format | widths | M | bare kernels | session | |", "|---|---|---|---|---|---|", sep="\n")
    for line in session["lines"]:
        low, high = line["widths"]
        times = f"{line['bare_us']:.2f} | {line['session_us']:.2f} | {line['session_us'] / line['bare_us'] - 1:+.1%}"
        print(f"| {line['format']} | {low} and {high} in turn | {line['M']} | {times} |")


if __name__ == "__main__":
    main()
