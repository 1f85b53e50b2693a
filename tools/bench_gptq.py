"""How long GPTQ of one large weight takes on a GPU, by format: from arrays in memory to codes and scales.

    python tools/bench_gptq.py                      # 4096 x 4096 in several formats
    python tools/bench_gptq.py --formats fp6_e3m2 --profile

Each row has the factorization of H, the search of ranges, all rounding and refinement, and the copies to and from the
GPU; the median of some runs behind one that compiles kernels.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time

import numpy as np

from onnxq.formats import get_format, get_scale_type
from onnxq.methods.backend import get_module
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import SOLVERS

# Rows that share a scale; None: a column has one.
GROUPS = {
    "uint4": 128,
    "int3": 128,
    "uint2": 32,
    "fp4_e2m1": 32,
    "nf4": 32,
    "codebook4": 32,
    "fp6_e2m3": None,
    "fp6_e3m2": None,
}


def main() -> None:
    """Time each format, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(GROUPS), help="comma-separated")
    parser.add_argument("--width", type=int, default=4096, help="rows and columns of the weight")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--profile", action="store_true", help="say where the time of one more run goes")
    options = parser.parse_args()
    rng, xp, k = np.random.default_rng(0), get_module(options.device), options.width
    weight = rng.standard_normal((1, k, k), np.float32)
    x = rng.standard_normal((2 * k, k), np.float32) * np.exp(rng.standard_normal(k)).astype(np.float32)
    x = xp.asarray(x) @ (xp.eye(k, dtype=xp.float32) + 0.4 * xp.asarray(weight[0]) / np.sqrt(k))
    h = x.T @ x
    h = (h if xp is np else h.get()).astype(np.float64)
    for name in options.formats.split(","):
        block = GROUPS.get(name)
        kind = get_format(name)
        spec = GridSpec([kind], block or k, get_scale_type("fp16"), symmetric=not name.startswith("uint"))

        def solve(spec: GridSpec = spec) -> None:
            SOLVERS["gptq"].solve(weight, spec, Curvature(h), xp)

        seconds = []
        for _ in range(options.rounds + 1):
            started = time.perf_counter()
            solve()
            seconds.append(time.perf_counter() - started)
        print(f"{name:12}{block or 'column':>8}{statistics.median(seconds[1:]):8.2f} s", flush=True)
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(solve)
            pstats.Stats(profile).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    sys.exit(main())
