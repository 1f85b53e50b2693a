"""Time candidate configurations of the CUDA kernels on the GPU at hand; tools/make_kernel_table.py takes the fastest.

python tools/sweep_kernels.py OUT.json fp6_e3m2:4096x4096:8,16 int4/128:28672x8192:16 [--most 60] [--seconds 300]

A product is format[/group][+gate]:NxK:M[,M...]; with `+gate`, strips of W are gate and up in turn. In a model most
products follow another kernel, so that they cannot start early; `--between` puts one before each product.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from gpu_products import Product, Replay, calls_for, median_seconds

from onnxq.runtime.cuda import kernels
from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Configuration, Operand, Stream, Tile
from onnxq.runtime.cuda.table import choose, fitted, measured, serves

_WARM_SECONDS = 0.003  # one candidate after the other keeps the clocks up
BUDGETS = (75_000, 113_000, 226_000)  # shared memory for three, two and one block a multiprocessor
MULTIPROCESSORS = 132


def streams(operand: Operand, M: int, N: int, K: int) -> Iterator[Stream]:
    """Candidates of matmul_stream: blocks of a few strips of 16 columns, or of so many that whole waves are filled."""
    nt = max(1, 1 << max(0, (min(M, 64) - 1).bit_length() - 3))
    for split, wk, rw in product((1, 2, 4), (1, 2, 4, 8), (1, 2, 3, 4, 7)):
        if rw * nt > (16 if operand.group else 32):  # sums that registers have no room for
            continue
        strips = {-(-N * split // 16 // (MULTIPROCESSORS * waves)) for waves in (1, 2)} | {2, 4}
        for wr in sorted({each // rw for each in strips if each % rw == 0}):
            blocks, deep = -(-N // (16 * rw * wr)) * split, -(-K // 128 // wk // split)
            if (
                not (8 if rw == 1 else 4) <= wr * wk <= 16
                or deep < 2
                or not 100 <= blocks <= (2100 if split == 1 else 300)
            ):
                continue
            made = partial(Stream, nt, rw, wr, wk, split=split, x_rows=min(M, 8 * nt))
            one = made(stages=40).shared_bytes(operand) // 40
            for stages in sorted({2, 3} | {min(deep, 12, budget // one) for budget in BUDGETS}):
                if not 2 <= stages <= min(deep, BUDGETS[-1] // one):
                    continue
                for ahead in (0, 1) if rw <= 2 else (0,):
                    yield made(stages=stages, ahead=ahead)


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
                    if some and blocks >= 60 and (split == 1 or blocks <= 1200):
                        yield candidate


def candidates(operand: Operand, M: int, N: int, K: int, most: int) -> list[Configuration]:
    """What the table has now, also for other formats of this shape, and at most so many others."""
    found: list[Configuration] = []
    if M <= 64:
        found += streams(operand, M, N, K)
    if M >= 16:
        found += tiles(operand, M, N, K)
    found = list(dict.fromkeys(fitted(operand, each) for each in found if serves(each, operand)))
    same = [line.configuration for line in measured() if (line.N, line.K) == (N, K) and M <= line.M <= 2 * M]
    known = [choose(operand, M, N, K), *(fitted(operand, each) for each in same if serves(each, operand))]
    tried = random.Random(0).sample(found, min(most, len(found)))  # noqa: S311 a choice of what to try
    return list(dict.fromkeys([*known, *tried]))


def compile_one(operand: Operand, configuration: Configuration) -> str:
    """Fill CuPy's disk cache; what went wrong, or nothing."""
    try:
        kernels.function(operand, configuration)
    except Exception as error:  # noqa: BLE001 a candidate that does not compile is a finding
        return f"{configuration}: {str(error)[-300:]}"
    return ""


def parsed(text: str) -> list[tuple[Operand, int, int, int]]:
    """The products that an argument names: operand, N, K, M."""
    kind, shape, rows = text.split(":")
    kind, _, gate = kind.partition("+")
    fmt, _, group = kind.partition("/")
    N, K = (int(each) for each in shape.split("x"))
    operand = Operand(fmt, group=int(group or 0), zero=fmt.startswith("uint"), gated=gate == "gate")
    return [(operand, N, K, int(M)) for M in rows.split(",")]


def timed(
    weight: Product, M: int, configurations: list[Configuration], until: float, *, between: bool
) -> dict[str, object]:
    """Check and time the candidates for a product, print the fastest."""
    operand, N, K = weight.operand, weight.N, weight.K
    x = weight.activations(M)
    y = torch.empty(M, weight.columns, dtype=x.dtype, device="cuda")
    reference = weight.expected(x)
    count = calls_for(max(weight.limit_seconds * 1.3, 2 * M * N * K / 6e14), weight.copies)
    rows = []
    source = torch.empty_like(x)

    def other(_: int) -> None:
        torch.mul(source, 1.0, out=x)

    def seconds_of(call: Callable[[int], None]) -> float:
        return median_seconds(Replay(call, count, weight.copies), 5, _WARM_SECONDS)

    source.copy_(x)
    seconds_of_other = seconds_of(other) if between else 0.0
    for configuration in configurations:
        if time.monotonic() > until:
            break
        run = partial(weight.run, configuration, x, y)

        def both(copy: int, run: Callable[[int], None] = run) -> None:
            other(copy)
            run(copy)

        try:
            error = weight.error(configuration, x, reference)
            call = both if between else run
            seconds = seconds_of(call) - seconds_of_other
        except Exception as problem:  # noqa: BLE001 as above
            if "refused" not in str(problem) and "CUDA error 1 " not in str(problem):
                print(configuration, problem)
            continue
        rows.append({"us": seconds * 1e6, "error": error, "configuration": repr(configuration)})
    known = next((row for row in rows if row["configuration"] == repr(configurations[0])), None)
    rows.sort(key=lambda row: row["us"])
    wrong = [row for row in rows if not row["error"] < 1e-3]
    limit, cublas = weight.limit_seconds * 1e6, median_seconds(weight.cublas(x)) * 1e6
    tried = f"{len(rows)} of {len(configurations)} tried, {len(wrong)} wrong"
    print(f"{operand.fmt} {N}x{K} M={M}: limit {limit:.1f} us, cuBLAS {cublas:.2f} us, {tried}")
    for row in [*([known] if known else []), *rows[:5], *wrong[:3]]:
        us = row["us"]
        print(f"   {us:.2f} us {limit / us:.0%} {cublas / us:.2f} times {row['configuration']} {row['error']:.1e}")
    about = {"fmt": operand.fmt, "group": operand.group, "N": N, "K": K, "M": M, "between": between}
    return about | {"cublas_us": cublas, "rows": rows}


def main() -> None:
    """Compile all candidates, check and time each, print and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("products", nargs="+", type=parsed, metavar="PRODUCT")
    parser.add_argument("--most", type=int, default=10**6, help="try so many candidates of a product, picked at random")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long; products share the time evenly")
    parser.add_argument("--between", action="store_true", help="another kernel before each product")
    arguments = parser.parse_args()
    began = time.monotonic()
    products = [each for listed in arguments.products for each in listed]
    work = [candidates(operand, M, N, K, arguments.most) for operand, N, K, M in products]
    pairs = dict.fromkeys((operand, c) for (operand, *_), listed in zip(products, work, strict=True) for c in listed)
    with ProcessPoolExecutor(15, get_context("spawn")) as pool:
        broken = list(filter(None, pool.map(compile_one, *zip(*pairs, strict=True), chunksize=4)))
    print(f"{len(pairs)} compiled in {time.monotonic() - began:.0f} s, {len(broken)} refused", *broken[:3])
    results: list[dict[str, object]] = []
    weight = None
    for at, ((operand, N, K, M), listed) in enumerate(zip(products, work, strict=True)):
        if weight is None or (weight.operand, weight.N, weight.K) != (operand, N, K):
            weight = None  # frees the one before
            weight = Product(operand, N, K)
        now = time.monotonic()
        share = (began + arguments.seconds - now) / (len(products) - at)
        results.append(timed(weight, M, listed, now + share, between=arguments.between))
        arguments.out.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
