"""Time the CUDA kernels beside cuBLAS and onnxruntime's own products, and write a table.

python tools/bench_kernels.py OUT.json [--quick]
python tools/bench_kernels.py OUT.json --shapes 4096x4096,4096x11008 --quick --without-onnxruntime

Weights rotate through more than 200 MB (the L2 cache holds 60), times are medians of CUDA-graph replays, ours and right
behind them those of cuBLAS, each after 20 ms of its own, from 128 rows on after 50; data is random, and each result is
compared with float64. "Limit" is the time to read the weights once at 4.3 TB/s. The own products of onnxruntime are
`MatMul` in float16 and `MatMulNBits` with 4 bits in blocks of 128, timed in sessions.
"""

import argparse
import datetime
import json
from functools import partial
from pathlib import Path

import torch
from gpu_products import WARM_SECONDS, Product, Replay, calls_for, median_seconds

from onnxq.runtime.cuda.configuration import Operand
from onnxq.runtime.cuda.table import choose

SHAPES = (
    *((28672, 8192), (8192, 28672), (14336, 4096), (4096, 14336)),
    *((11008, 4096), (4096, 11008), (4096, 4096)),
)
FEW, LONG_WARM_SECONDS = 64, 0.05
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
OPERANDS = (
    *(Operand("fp6_e3m2"), Operand("fp6_e2m3"), Operand("fp4_e2m1", group=128), Operand("int4", group=128)),
    *(Operand("fp6_e3m2", group=128), Operand("fp6_e3m2", dtype="bfloat16")),
)


def of_onnxruntime(N: int, K: int) -> dict[int, dict[str, float]]:
    """Microseconds of its own products, by rows of x."""
    from gpu_sessions import Own

    found: dict[int, dict[str, float]] = {M: {} for M in ROWS}
    for name, operator in (("ort_us", "MatMul"), ("ort_4bit_us", "MatMulNBits")):
        own = Own(operator, N, K)
        for M in ROWS:
            found[M][name] = own.seconds(M) * 1e6
        del own
        torch.cuda.empty_cache()
    return found


def line(weight: Product, dense: Product, M: int, own: dict[str, float]) -> dict[str, object]:
    """Check one product, and time it beside cuBLAS."""
    operand, N, K = weight.operand, weight.N, weight.K
    x = weight.activations(M)
    y = torch.empty(M, weight.columns, dtype=x.dtype, device="cuda")
    configuration = choose(operand, M, N, K)
    error = weight.error(configuration, x, weight.expected(x))
    guess = max(weight.limit_seconds * 1.3, 2 * M * N * K / 6e14)
    run = partial(weight.run, configuration, x, y)
    ours = Replay(run, calls_for(guess, weight.copies), weight.copies)
    # Few rows are moments of a step. Many come layer after layer: what counts is the clocks that their power allows.
    warm = WARM_SECONDS if M <= FEW else LONG_WARM_SECONDS
    us, cublas_us = (median_seconds(each, warm_seconds=warm) * 1e6 for each in (ours, dense.cublas(x.half())))
    limit, others = weight.limit_seconds * 1e6, {"cublas_us": cublas_us, **own}
    ratios = "  ".join(f"{time / us:5.2f}" for time in others.values())
    print(
        f"{operand.fmt:9} {operand.dtype:8} g{operand.group:<4} {N:6}x{K:<6} M={M:<5} {us:9.2f} us  "
        f"{limit / us:4.0%} of limit  {ratios} x cuBLAS, MatMul, MatMulNBits  error {error:.1e}"
    )
    names = {"format": operand.fmt, "dtype": operand.dtype, "group": operand.group, "N": N, "K": K, "M": M}
    numbers = {"us": us, "limit_us": limit, **others, "error": error}
    return names | numbers | {"configuration": repr(configuration)}


def main() -> None:
    """Run all products, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="other formats than FP6 E3M2 on one shape only")
    parser.add_argument("--shapes", help="NxK, comma-separated; by default seven of LLaMA's")
    parser.add_argument("--without-onnxruntime", action="store_true", help="beside PyTorch's cuBLAS alone")
    arguments = parser.parse_args()
    shapes = [tuple(map(int, each.split("x"))) for each in arguments.shapes.split(",")] if arguments.shapes else SHAPES
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if not arguments.without_onnxruntime:
        import onnxruntime as ort

        ort.preload_dlls()
        about["onnxruntime"] = ort.__version__
    lines: list[dict[str, object]] = []
    for N, K in shapes:
        dense = Product(OPERANDS[0], N, K)
        own = {M: {} for M in ROWS} if arguments.without_onnxruntime else of_onnxruntime(N, K)
        for operand in OPERANDS if SHAPES[0] == (N, K) or not arguments.quick else OPERANDS[:1]:
            weight = Product(operand, N, K)
            for M in ROWS if operand is OPERANDS[0] or not arguments.quick else (1, 16, 64, 256):
                lines.append(line(weight, dense, M, own[M]))
                arguments.out.write_text(json.dumps({"about": about, "lines": lines}, indent=1))
            del weight
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
