"""Time the CUDA kernels beside cuBLAS and write a table.

python tools/bench_kernels.py OUT.json [--quick]

Weights rotate through more than 200 MB (the L2 cache holds 60), times are medians of CUDA-graph replays, data is
random, and each result is compared with float64. "Limit" is the time to read the weights once at 4.3 TB/s.
"""

import argparse
import datetime
import json
from functools import partial
from pathlib import Path

import torch
from gpu_products import Product, calls_for, seconds_each

from onnxq.runtime.cuda.configuration import Operand
from onnxq.runtime.cuda.table import choose

SHAPES = (
    *((28672, 8192), (8192, 28672), (14336, 4096), (4096, 14336)),
    *((11008, 4096), (4096, 11008), (4096, 4096)),
)
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
OPERANDS = (
    *(Operand("fp6_e3m2"), Operand("fp6_e2m3"), Operand("fp4_e2m1", group=128), Operand("int4", group=128)),
    *(Operand("fp6_e3m2", group=128), Operand("fp6_e3m2", dtype="bfloat16")),
)


def line(weight: Product, M: int, cublas: dict[tuple[int, int, int], float]) -> dict[str, object]:
    """Check and time one product."""
    operand, N, K = weight.operand, weight.N, weight.K
    x = weight.activations(M)
    y = torch.empty(M, N, dtype=x.dtype, device="cuda")
    configuration = choose(operand, M, N, K)
    error = weight.error(configuration, x, x.double() @ weight.dense())
    guess = max(weight.limit_seconds * 1.3, 2 * M * N * K / 6e14)
    run = partial(weight.run, configuration, x, y)
    us = seconds_each(run, calls_for(guess, weight.copies), weight.copies) * 1e6
    if (N, K, M) not in cublas:
        cublas[N, K, M] = weight.cublas_seconds(x, y) * 1e6
    limit = weight.limit_seconds * 1e6
    times = cublas[N, K, M] / us
    print(
        f"{operand.fmt:9} {operand.dtype:8} g{operand.group:<4} {N:6}x{K:<6} M={M:<5} {us:9.2f} us  "
        f"{limit / us:4.0%} of limit  {times:5.2f} x cuBLAS  error {error:.1e}"
    )
    names = {"format": operand.fmt, "dtype": operand.dtype, "group": operand.group, "N": N, "K": K, "M": M}
    numbers = {"us": us, "limit_us": limit, "cublas_us": cublas[N, K, M], "error": error}
    return names | numbers | {"configuration": repr(configuration)}


def main() -> None:
    """Run all products, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="other formats than FP6 E3M2 on one shape only")
    arguments = parser.parse_args()
    lines: list[dict[str, object]] = []
    cublas: dict[tuple[int, int, int], float] = {}
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for index, operand in enumerate(OPERANDS):
        for N, K in SHAPES if index == 0 or not arguments.quick else ((28672, 8192),):
            weight = Product(operand, N, K)
            for M in ROWS if index == 0 or not arguments.quick else (1, 16, 64, 256):
                lines.append(line(weight, M, cublas))
                arguments.out.write_text(json.dumps({"about": about, "lines": lines}, indent=1))
            del weight
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
