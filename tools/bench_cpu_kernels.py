"""How fast onnxq's native matmuls are on this CPU, beside onnxruntime's float32 MatMul and its MatMulNBits.

    python tools/bench_cpu_kernels.py                  # a few minutes, 5 GB of memory
    python tools/bench_cpu_kernels.py --rows 1 --rounds 5 --json cpu.json
    ONNXQ_CPU_ISA=avx2 python tools/bench_cpu_kernels.py --cpu-time --where cached --rows 2 4 --only FP6E2M3 INT4

A model is a chain of products [M, 4096] @ [4096, 4096]. `rotating` has so many layers that their weights exceed every
cache, as those of a language model do; `cached` has one, run over and over. All sessions run in turn, round after
round; a ratio is that of two times of the same round, and the median over all rounds counts, with that of the best
times behind it. What level 4 gains stands in the last column. A floor that is missed is marked with '!'.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from onnxq.formats import get_format, packed_bytes
from onnxq.functions import operator_suffix
from onnxq.runtime.native import native_library
from onnxq.runtime.session import session

_WIDTH = 4096
_WEIGHTS = _WIDTH * _WIDTH
_OPSETS = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("onnxq", 1)]
_RNG = np.random.default_rng(0)
# The weights of a layer have this deviation, so that numbers neither grow nor shrink along the chain.
_DEVIATION = _WIDTH**-0.5

Layer = Callable[[int], tuple[onnx.NodeProto, dict[str, np.ndarray]]]


@dataclass
class Kind:
    """A way to multiply: node and constants of each layer, the bytes of one layer, and the session's accuracy level."""

    name: str
    layer: Layer
    size_bytes: int
    accuracy_level: int | None = None


def _other(array: np.ndarray, at: int) -> np.ndarray:
    """Other numbers for each layer: onnxruntime rearranges weights, and keeps one copy of those that are equal."""
    return np.roll(array.reshape(-1), 7919 * at).reshape(array.shape)


def float32() -> Kind:
    """MatMul of onnxruntime."""
    weight = _RNG.standard_normal((_WIDTH, _WIDTH), np.float32) * np.float32(_DEVIATION)

    def layer(at: int) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
        return helper.make_node("MatMul", [f"x{at}", f"w{at}"], [f"x{at + 1}"]), {f"w{at}": _other(weight, at)}

    return Kind("float32 MatMul", layer, weight.nbytes)


def nbits(bits: int, level: int, block: int = 32) -> Kind:
    """MatMulNBits of onnxruntime."""
    codes = _RNG.integers(0, 256, (_WIDTH, _WIDTH // block, block * bits // 8), np.uint8)
    scale = np.full(_WEIGHTS // block, _DEVIATION * 12**0.5 / 2**bits, np.float32)

    def layer(at: int) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
        node = helper.make_node(
            "MatMulNBits",
            [f"x{at}", f"w{at}", f"s{at}"],
            [f"x{at + 1}"],
            domain="com.microsoft",
            K=_WIDTH,
            N=_WIDTH,
            bits=bits,
            block_size=block,
            accuracy_level=level,
        )
        return node, {f"w{at}": _other(codes, at), f"s{at}": scale}

    return Kind(f"MatMulNBits {bits} bits, level {level}", layer, codes.nbytes + scale.nbytes)


def native(name: str, block: int, scale: str = "float32", level: int = 0) -> Kind:
    """A native operator of onnxq; at level 4 it rounds activations to int8 if this CPU has the instructions."""
    kind = get_format(name)
    packed = _RNG.integers(0, 256, packed_bytes(_WEIGHTS, kind.bits), np.uint8)
    scales = np.full((_WIDTH // block, _WIDTH), _DEVIATION / np.std(kind.values), scale)

    def layer(at: int) -> tuple[onnx.NodeProto, dict[str, np.ndarray]]:
        node = helper.make_node(
            f"MatMul{operator_suffix(kind)}",
            [f"x{at}", f"w{at}", f"s{at}"],
            [f"x{at + 1}"],
            domain="onnxq",
            shape=[_WIDTH, _WIDTH],
            block_size=block,
            dtype=int(TensorProto.FLOAT),
        )
        return node, {f"w{at}": _other(packed, at), f"s{at}": scales}

    blocks = "per channel" if block == _WIDTH else f"blocks of {block}"
    label = f"{operator_suffix(kind)} {blocks}" + (f", level {level}" if level else "")
    return Kind(label, layer, packed.nbytes + scales.nbytes, level)


def opened(kind: Kind, layers: int, threads: int) -> Any:
    """A session of a chain of layers, each with a copy of the weights of its own."""
    nodes, constants = [], []
    for at in range(layers):
        node, arrays = kind.layer(at)
        nodes.append(node)
        constants += [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["M", _WIDTH]) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, ir_version=13, opset_imports=_OPSETS).SerializeToString()
    options = onnxruntime.SessionOptions()
    # Threads of a session go on spinning for many milliseconds after a run: on the CPUs that the next session needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return session(model, providers=["cpu"], threads=threads, options=options, accuracy_level=kind.accuracy_level)


def measure(
    sessions: dict[str, tuple[Any, int]], rows: int, rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds a layer, in each round."""
    x = _RNG.standard_normal((rows, _WIDTH)).astype(np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 1):
        for name, (each, layers) in sessions.items():
            repeats = max(1, (64 if rows < 16 else 4) // layers)
            started = clock()
            for _ in range(repeats):
                each.run(None, {"x0": x})
            if number:  # the first round warms up
                times[name].append((clock() - started) * 1e3 / repeats / layers)
    return times


# What is promised at level 0: (where, rows) -> for a prefix of a name, at least this many times as fast as float32, and
# at most this multiple of the time of MatMulNBits with 4 bits at accuracy level 4.
_FLOORS: dict[tuple[str, int], list[tuple[str, float | None, float | None]]] = {
    ("rotating", 1): [("FP6", 3.5, 1.6), ("FP4", None, 1.2), ("INT4", None, 1.2)],
    ("rotating", 8): [("FP6", 2.0, None)],
    ("cached", 1): [("FP6", 2.0, None)],
    ("cached", 128): [("FP6", 0.8, None)],
}


def show(where: str, rows: int, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Print a table, and return its rows."""
    reference, low_bit = times["float32 MatMul"], times["MatMulNBits 4 bits, level 4"]
    print(f"\n{where}, M = {rows}: ms a product, median (best); ratios likewise")
    print(f"{'':30}{'ms':>16}{'x float32':>18}{'time / 4-bit level 4':>24}{'x level 0':>20}")
    made = []
    for name, each in times.items():
        faster = statistics.median(a / b for a, b in zip(reference, each, strict=True))
        slower = statistics.median(a / b for a, b in zip(each, low_bit, strict=True))
        best_faster, best_slower = min(reference) / min(each), min(each) / min(low_bit)
        promised = [] if "level" in name else _FLOORS.get((where, rows), [])
        floor = next((each for each in promised if name.startswith(each[0])), (name, None, None))
        missed = (floor[1] is not None and faster < floor[1]), (floor[2] is not None and slower > floor[2])
        marks = ["!" if each else " " for each in missed]
        exact = times.get(name.removesuffix(", level 4"), each)
        rounding = statistics.median(a / b for a, b in zip(exact, each, strict=True))
        print(
            f"{name:30}{statistics.median(each):8.2f} ({min(each):5.2f}){faster:9.2f} ({best_faster:4.2f}){marks[0]}"
            f"{slower:14.2f} ({best_slower:4.2f}){marks[1]}"
            + (f"{rounding:17.2f} ({min(exact) / min(each):4.2f})" if exact is not each else "")
        )
        made.append(
            {
                "where": where,
                "rows": rows,
                "name": name,
                "ms": statistics.median(each),
                "best_ms": min(each),
                "times_float32": faster,
                "best_times_float32": best_faster,
                "of_4_bits": slower,
                "best_of_4_bits": best_slower,
                "times_level_0": rounding,
                "floor_missed": any(missed),
            }
        )
    return made


def cpu_name() -> str:
    """What the CPU calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Run everything, print tables, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--mib", type=int, default=320, help="of weights that rotate, for each way; more than any cache"
    )
    parser.add_argument("--where", choices=["rotating", "cached"], nargs="+", default=["rotating", "cached"])
    parser.add_argument("--cpu-time", action="store_true", help="of one thread, on a machine that others use as well")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="those alone, beside what they are compared with")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    options.threads = 1 if options.cpu_time else options.threads
    library = native_library()
    if library.problem:
        raise SystemExit(library.problem)
    isa = os.environ.get("ONNXQ_CPU_ISA") or library.instruction_sets[0]
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "threads": options.threads,
        "clock": "CPU time" if options.cpu_time else "wall time",
        "instruction_set": isa,
        "onnxruntime": onnxruntime.__version__,
        "rounds": options.rounds,
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    references = [float32(), nbits(4, 4)]
    kinds = [
        nbits(4, 0),
        nbits(8, 4),
        native("fp6_e2m3", _WIDTH),
        native("fp6_e2m3", 128),
        native("fp6_e3m2", 32, "float16"),
        native("fp4_e2m1", 32, "float16"),
        native("int4", 128, "float16"),
        native("fp6_e2m3", _WIDTH, level=4),
        native("fp4_e2m1", 32, "float16", level=4),
        native("int4", 128, "float16", level=4),
    ]
    if options.only:
        kinds = [each for each in kinds if each.name.startswith(tuple(options.only))]
    kinds = references + kinds
    results = []
    for where in options.where:
        sessions = {}
        for kind in kinds:
            layers = -(-options.mib * 2**20 // kind.size_bytes) if where == "rotating" else 1
            sessions[kind.name] = (opened(kind, layers, options.threads), layers)
        for rows in options.rows:
            if (where, rows) != ("rotating", 128):
                results += show(where, rows, measure(sessions, rows, options.rounds, clock))
    if options.json:
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
