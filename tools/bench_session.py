"""Time sixteen products one after the other in onnxruntime, and the bare kernels in the same order.

python tools/bench_session.py OUT.json

Each product has a weight of its own, all of them together more than the L2 cache holds. onnxruntime replays a CUDA
graph (`enable_cuda_graph`); so do the bare kernels. Times are medians, in microseconds a product.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from gpu_products import Product, Replay, median_seconds
from gpu_sessions import replay_seconds
from onnx import helper, numpy_helper

import onnxq
from onnxq.formats import get_format
from onnxq.formats.tiled import TILED_VERSION
from onnxq.functions import functions, operator_suffix
from onnxq.runtime.cuda.configuration import Operand
from onnxq.runtime.cuda.table import choose

LAYERS = 16
CASES = (  # format, group, widths of activations in turn
    ("fp6_e3m2", 0, (4096, 4096)),
    ("fp6_e3m2", 0, (4096, 14336)),
    ("fp4_e2m1", 128, (4096, 4096)),
    ("int4", 128, (4096, 11008)),
)
ROWS = (1, 16, 64)


def model(products: list[Product]) -> bytes:
    """A model of these products, one after the other."""
    operand, nodes, tensors = products[0].operand, [], []
    name = f"MatMul{operator_suffix(get_format(operand.fmt))}Tiled"
    for layer, each in enumerate(products):
        packed = each.packed[0].cpu().numpy().reshape(each.N // 16, each.K // 128, operand.unit_bytes)
        for key, array in (("p", packed), ("s", each.scale.cpu().numpy())):
            tensors.append(numpy_helper.from_array(array, f"{key}{layer}"))
        attributes = {
            "shape": [each.K, each.N],
            "block_size": operand.group or each.K,
            "dtype": 10,
            "layout": TILED_VERSION,
        }
        inputs = [f"x{layer}", f"p{layer}", f"s{layer}"]
        nodes.append(helper.make_node(name, inputs, [f"x{layer + 1}"], domain="onnxq", **attributes))
    ends = ((f"x{0}", products[0].K), (f"x{len(products)}", products[-1].N))
    first, last = (helper.make_tensor_value_info(end, 10, ["M", width]) for end, width in ends)
    return helper.make_model(
        helper.make_graph(nodes, "chain", [first], [last], tensors),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("onnxq", 1)],
        functions=[ir.serde.serialize_function(each) for each in functions([name], 21)],
    ).SerializeToString()


def session_seconds(made: bytes, M: int, widths: tuple[int, int]) -> float:
    """Median time of a product within onnxruntime."""
    options = ort.SessionOptions()
    if not onnxq.register(options, cuda=True):
        raise SystemExit("no native kernels here: see `onnxq doctor`")
    opened = ort.InferenceSession(made, options, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
    binding, shapes = opened.io_binding(), ((M, widths[0]), (M, widths[LAYERS % 2]))
    x, y = (ort.OrtValue.ortvalue_from_numpy(np.ones(shape, np.float16), "cuda", 0) for shape in shapes)
    binding.bind_ortvalue_input("x0", x)
    binding.bind_ortvalue_output(f"x{LAYERS}", y)
    return replay_seconds(opened, binding) / LAYERS


def bare_seconds(products: list[Product], M: int) -> float:
    """The same of the kernels alone."""
    buffers = [each.activations(M) for each in products[:2]]
    chosen = [choose(each.operand, M, each.N, each.K) for each in products[:2]]

    def call(layer: int) -> None:
        # The result of a layer is the activation of the next: two buffers take turns.
        products[layer].run(chosen[layer % 2], buffers[layer % 2], buffers[(layer + 1) % 2])

    return median_seconds(Replay(call, 20 * LAYERS, LAYERS))


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments, lines = parser.parse_args(), []
    ort.preload_dlls()
    for fmt, group, widths in CASES:
        operand = Operand(fmt, group=group)
        pairs = itertools.islice(itertools.cycle((widths, widths[::-1])), LAYERS)
        products = [Product(operand, N, K, seed, copies=1) for seed, (K, N) in enumerate(pairs)]
        for each in products:
            # Activations keep their size from layer to layer.
            each.scale *= float(100 / np.sqrt(np.square(get_format(fmt).values).mean() * each.K))
        made = model(products)
        for M in ROWS:
            bare, within = bare_seconds(products, M) * 1e6, session_seconds(made, M, widths) * 1e6
            times = f"bare {bare:7.2f} us  onnxruntime {within:7.2f} us  {within / bare:.3f}"
            print(f"{fmt:9} g{group:<4} {widths} M={M:<4} {times}")
            about = {"format": fmt, "group": group, "widths": widths, "M": M}
            lines.append(about | {"bare_us": bare, "session_us": within})
            arguments.out.write_text(json.dumps({"onnxruntime": ort.__version__, "lines": lines}, indent=1))


if __name__ == "__main__":
    main()
