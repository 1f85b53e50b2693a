"""onnxq beside onnxruntime's own `MatMulNBitsQuantizer`, where both have the method: the table of docs/methods.md.

    python tools/compare_quantizers.py                    # every method
    python tools/compare_quantizers.py --samples 8 --step 8 --methods gptq

Both convert the language model of `samples/code_lm`, whose large weights are stored here as float32 (onnxruntime's
quantizer takes no weight behind a Cast), to the same bits and groups, and are measured on `heldout.npy` with float
activations. GPTQ is calibrated on the same windows of `calibration.npy`. The command fails where onnxq has the higher
perplexity, or leaves out a product that onnxruntime quantizes.
"""

import argparse
import copy
import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from language_model import CALIBRATION, MODEL, dated, heading, heldout, nll
from onnx import helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as theirs

import onnxq
from onnxq.recipes import parse_recipe

LENGTH = 512
# Two runs of one method break ties apart: of the perplexity.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Method:
    """A method that both have.

    Attributes:
        bits: Of a weight.
        group: Weights that share a scale and a zero point.
        ours: Method of the recipe.
        data: It is calibrated.
    """

    bits: int
    group: int
    ours: str
    data: bool = False


METHODS = {
    "rtn": Method(4, 32, "rtn"),
    "rtn, groups of 128": Method(4, 128, "rtn"),
    "rtn, 2 bits": Method(2, 32, "rtn"),
    "hqq": Method(4, 64, "hqq"),
    "gptq": Method(4, 128, "gptq", data=True),
}


class Windows:
    """Feeds of the language model, as onnxruntime reads them."""

    def __init__(self, windows: np.ndarray) -> None:
        self._windows = windows

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({"input_ids": window[None].astype(np.int64)} for window in self._windows)


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its float16 weights, and the Casts behind them, as float32 weights."""
    made = copy.deepcopy(model)
    stored = {each.name: each for each in made.graph.initializer}
    casts = [node for node in made.graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for node in casts:
        weight = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        made.graph.initializer.remove(stored[node.input[0]])
        made.graph.node.remove(node)
    return made


def by_onnxruntime(model: onnx.ModelProto, method: Method, windows: np.ndarray) -> onnx.ModelProto:
    """The model as onnxruntime's quantizer gives it back."""
    config = None
    if method.ours == "hqq":
        config = theirs.HQQWeightOnlyQuantConfig(block_size=method.group, bits=method.bits)
    elif method.ours == "gptq":
        config = theirs.GPTQWeightOnlyQuantConfig(calibration_data_reader=Windows(windows), actorder=False)
    quantizer = theirs.MatMulNBitsQuantizer(
        copy.deepcopy(model), bits=method.bits, block_size=method.group, is_symmetric=False, algo_config=config
    )
    quantizer.process()
    proto: onnx.ModelProto = quantizer.model.model
    # Some of its methods do not say which version of its operators they use.
    if all(each.domain != "com.microsoft" for each in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def main() -> int:
    """Convert, measure and print; 1 where onnxq does worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=";".join(METHODS), help="rows, separated by semicolons; by default all")
    parser.add_argument("--samples", type=int, default=32, help="windows of 512 tokens to calibrate on; 32 by default")
    parser.add_argument("--step", type=int, default=1, help="measure every n-th held-out window; by default all 320")
    options = parser.parse_args()
    logging.getLogger(theirs.__name__).setLevel(logging.WARNING)
    tokens = heldout(options.step)
    windows = np.load(CALIBRATION)[: options.samples * LENGTH].reshape(-1, LENGTH)
    print(f"{heading(dated())}, {options.samples} windows\n")
    print(
        "| method | bits, groups | perplexity, onnxruntime | onnxq | products, onnxruntime | onnxq |\n|" + " --- |" * 6
    )
    worse = []
    with tempfile.TemporaryDirectory() as folder:
        source, output, other = (Path(folder) / f"{name}.onnx" for name in ("float", "ours", "theirs"))
        model = plain(onnx.ModelProto.FromString(MODEL.read_bytes()))
        source.write_bytes(model.SerializeToString())
        exact = nll(source, tokens)
        for name in options.methods.split(";"):
            method = METHODS[name]
            made = by_onnxruntime(model, method, windows)
            other.write_bytes(made.SerializeToString())
            left = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
            spec = f"format: uint{method.bits}, granularity: group, group_size: {method.group}, symmetric: false"
            recipe = parse_recipe(f"rules:\n- weight: {{{spec}, method: {method.ours}}}")
            data = onnxq.Calibration(windows.ravel().astype(np.uint16), samples=None) if method.data else None
            report = onnxq.quantize(source, recipe, output=output, force=True, calibration=data)
            found = [math.exp(nll(path, tokens)) for path in (other, output)]
            shown = " | ".join(f"{each:.3f} ({each / math.exp(exact) - 1:+.2%})".replace("%", " %") for each in found)
            print(
                f"| {name} | {method.bits}, {method.group} | {shown} | {left} | {len(report.quantized)} |", flush=True
            )
            if not math.isfinite(found[1]) or found[1] > found[0] * (1 + _TOLERANCE) or len(report.quantized) < left:
                worse.append(name)
    print(f"\nonnxq does worse: {', '.join(worse)}" if worse else "\nonnxq is nowhere worse.")
    return bool(worse)


if __name__ == "__main__":
    sys.exit(main())
