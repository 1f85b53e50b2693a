"""How long onnxruntime takes for one product with a quantized weight, beside the float one, on one thread.

    python tools/bench_products.py
    python tools/bench_products.py --width 4096 --rows 1,64

Every row is one MatMul of [M, width] with a [width, width] weight, quantized with a preset for a target, in a session
of onnxq at an accuracy level: 4 rounds activations to int8, 1 leaves them float. The fastest of many runs counts.
"""

import argparse
import platform
import time
from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxq

# Preset, target and accuracy level; no level where onnxruntime uses no kernel that has one.
CASES = (
    ("float", "", None),
    ("fp6", "ort", None),
    ("fp6-e2m3", "ort-int8", 4),
    ("fp6-e2m3", "ort-int8", 1),
    ("int8", "ort", 4),
    ("int8", "ort", 1),
    ("int4", "ort", 4),
    ("int4", "ort", 1),
)
_SECONDS = 1.0


def make_model(width: int) -> onnx.ModelProto:
    """One product with a Gaussian weight."""
    weight = np.random.default_rng(0).standard_normal((width, width), np.float32)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def quantized(model: onnx.ModelProto, preset: str, target: str, level: int | None) -> onnx.ModelProto:
    """The model of a case; a level that stands in the file is replaced."""
    if preset == "float":
        return model
    made, _ = onnxq.quantize_proto(model, preset, target=target)
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level" and level is not None:
                attribute.i = level
    return made


def milliseconds(model: onnx.ModelProto, rows: int, width: int, level: int | None) -> float:
    """The fastest run within a second."""
    opened = onnxq.session(model.SerializeToString(), providers=["cpu"], threads=1, accuracy_level=level)
    feed = {"x": np.random.default_rng(1).standard_normal((rows, width), np.float32)}
    opened.run(None, feed)
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        opened.run(None, feed)
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--rows", default="1,16,256", help="values of M, comma-separated")
    options = parser.parse_args()
    rows = [int(each) for each in options.rows.split(",")]
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}")
    print(f"Milliseconds for one product with a weight of {options.width} x {options.width}\n")
    header = ["recipe", "target", "accuracy level", *(f"M = {each}" for each in rows)]
    print(f"{_line(header)}\n{_line(['---'] * len(header))}")
    model = make_model(options.width)
    for preset, target, level in CASES:
        made = quantized(model, preset, target, level)
        times = [f"{milliseconds(made, each, options.width, level):.2f}" for each in rows]
        print(_line([preset, target, "" if level is None else str(level), *times]), flush=True)


if __name__ == "__main__":
    main()
