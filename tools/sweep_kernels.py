"""Time candidate configurations of the CUDA kernels on the GPU at hand; tools/make_kernel_table.py takes the fastest.

python tools/sweep_kernels.py OUT.json --family stream --shapes 28672x8192 4096x4096 --rows 1 16 [--seconds 120]
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from gpu_products import Product, calls_for, seconds_each

from onnxq.runtime.cuda import kernels
from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Configuration, Operand, Stream, Tile

_WARM_SECONDS = 0.003  # one candidate after the other keeps the clocks up
BUDGETS = (75_000, 113_000, 226_000)  # shared memory for three, two and one block a multiprocessor
GEOMETRIES = (  # rw, wr, wk
    *((1, 1, 4), (1, 1, 8), (1, 1, 16), (1, 2, 4), (1, 2, 8), (2, 1, 4), (2, 1, 8), (2, 2, 2), (2, 2, 4), (2, 4, 1)),
    *((3, 1, 8), (3, 2, 4), (4, 1, 4), (4, 1, 8), (4, 2, 2), (4, 2, 4), (4, 4, 1)),
)


def streams(operand: Operand, M: int, N: int, K: int) -> Iterator[Stream]:
    """Candidates of matmul_stream."""
    nt = max(1, 1 << max(0, (min(M, 64) - 1).bit_length() - 3))
    for rw, wr, wk in GEOMETRIES:
        one = Stream(nt, rw, wr, wk, 40, 1, x_rows=min(M, 8 * nt)).shared_bytes(operand) // 40
        for split in (1, 2, 4):
            deep = -(-K // 128 // wk // split)
            blocks = -(-N // (16 * rw * wr)) * split
            if deep >= 2 and 100 <= blocks <= 1800 and (split == 1 or blocks <= 600):
                fitting = {min(deep, 12, budget // one) for budget in BUDGETS} | {2, 3, 4} & set(range(deep + 1))
                for stages in sorted(fitting):
                    if stages >= 2 and stages * one < BUDGETS[-1]:
                        for ahead in (0, 1) if rw <= 2 else (0,):
                            yield Stream(nt, rw, wr, wk, stages, split, x_rows=min(M, 8 * nt), ahead=ahead)


def tiles(operand: Operand, M: int, N: int, K: int) -> Iterator[Tile]:
    """Candidates of matmul_tile."""
    for columns in (16, 32, 64, 128, 256):
        if not M / 2 <= columns <= max(16, M) and not (columns >= 128 and columns < M):
            continue
        shapes = ((1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 2, 1), (2, 1, 2), (1, 3, 1))
        for fold, (mb, groups, resident) in product((0, 1) if operand.group else (0,), shapes):
            entry = 65536 // (resident * 128 * (groups + 1))
            registers = (entry * (groups + 1) - 40) // groups if entry < 200 else 248
            per_step = mb * 8
            accumulators = mb * columns // 2 * (2 if operand.group and not fold else 1)
            for steps in (1, 4):
                if accumulators + per_step * steps + mb * 12 + 24 > registers:
                    continue
                one = Tile(columns, mb, groups, 40, 1).shared_bytes(operand) // 40
                most = SHARED_BYTES_LIMIT // resident - 1024 * (resident > 1)
                # As many stages as fit; and so many that blocks of the next kernel fit beside those of this one.
                for stages, split in product(sorted({min(6, most // one), min(6, BUDGETS[1] // one)}), (1, 2, 4, 8)):
                    candidate = Tile(columns, mb, groups, stages, split, resident, steps, fold)
                    blocks = candidate.blocks(M, N)
                    some = stages >= 2 and candidate.shared_bytes(operand) <= most and K // 128 // split >= 4
                    if some and blocks >= 60 and (split == 1 or blocks <= 600):
                        yield candidate


def compile_one(operand: Operand, configuration: Configuration) -> str:
    """Fill CuPy's disk cache; what went wrong, or nothing."""
    try:
        kernels.function(operand, configuration)
    except Exception as error:  # noqa: BLE001 a candidate that does not compile is a finding
        return f"{configuration}: {str(error)[-300:]}"
    return ""


def main() -> None:
    """Compile all candidates, check and time each, print and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=("stream", "tile"), required=True)
    parser.add_argument("--shapes", nargs="+", required=True, help="NxK")
    parser.add_argument("--rows", nargs="+", type=int, required=True, help="values of M")
    parser.add_argument("--fmt", default="fp6_e3m2")
    parser.add_argument("--group", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    arguments = parser.parse_args()
    began = time.monotonic()
    operand = Operand(arguments.fmt, group=arguments.group)
    candidates = streams if arguments.family == "stream" else tiles
    shapes = [tuple(int(part) for part in shape.split("x")) for shape in arguments.shapes]
    work = {(N, K, M): list(candidates(operand, M, N, K)) for N, K in shapes for M in arguments.rows}
    unique = list(dict.fromkeys(c for listed in work.values() for c in listed))
    with ProcessPoolExecutor(15, get_context("spawn")) as pool:
        broken = list(filter(None, pool.map(compile_one, [operand] * len(unique), unique, chunksize=4)))
    print(
        f"{len(unique)} configurations compiled in {time.monotonic() - began:.0f} s, {len(broken)} refused", *broken[:3]
    )
    results = []
    for N, K in shapes:
        weight = Product(operand, N, K)
        for M in arguments.rows:
            x = weight.activations(M)
            y = torch.empty(M, N, dtype=x.dtype, device="cuda")
            reference = x.double() @ weight.dense()
            rows = []
            for configuration in work[N, K, M]:
                if time.monotonic() - began > arguments.seconds:
                    break
                run = partial(weight.run, configuration, x, y)
                guess = max(weight.limit_seconds * 1.3, 2 * M * N * K / 6e14)
                count = calls_for(guess, weight.copies)
                try:
                    error = weight.error(configuration, x, reference)
                    seconds = seconds_each(run, count, weight.copies, 5, _WARM_SECONDS)
                except Exception as problem:  # noqa: BLE001 as above
                    if "refused" not in str(problem) and "CUDA error 1 " not in str(problem):
                        print(configuration, problem)
                    continue
                rows.append({"us": seconds * 1e6, "error": error, "configuration": repr(configuration)})
            if not rows:
                continue
            rows.sort(key=lambda row: row["us"])
            wrong = [row for row in rows if not row["error"] < 1e-3]
            limit = weight.limit_seconds * 1e6
            print(f"{operand.fmt} {N}x{K} M={M}: limit {limit:.1f} us, {len(rows)} tried, {len(wrong)} wrong")
            for row in rows[:5] + wrong[:3]:
                print(f"   {row['us']:.2f} us {limit / row['us']:.0%} {row['configuration']} {row['error']:.1e}")
            best = partial(weight.run, eval(rows[0]["configuration"]), x, y, early=False)  # noqa: S307 our own text
            late = seconds_each(best, count, weight.copies, 5) * 1e6
            cublas = weight.cublas_seconds(x, y) * 1e6
            print(f"   without early launch {late:.2f} us; cuBLAS {cublas:.2f} us, {cublas / rows[0]['us']:.2f} times")
            results.append(
                {
                    "cublas_us": cublas,
                    "late_us": late,
                    "N": N,
                    "K": K,
                    "M": M,
                    "fmt": operand.fmt,
                    "group": operand.group,
                    "rows": rows,
                }
            )
            arguments.out.write_text(json.dumps(results))
        del weight
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
