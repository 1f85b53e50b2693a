"""How fast onnxruntime runs models with 8-bit activations and weights, beside the same models in float32.

    python tools/bench_activations.py                      # a few minutes on one thread
    python tools/bench_activations.py --layers 2 --seconds 1

The models are the digits ResNet of `samples/digits`, and an encoder of the size of BERT base (width 768, 12 heads,
inner width 3072, 128 tokens) with random weights. All variants of a model run in turns, so that what else the machine
does hits all of them; the fastest run of each counts, and a ratio is that of two times of one such race.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.recipes import Recipe, parse_recipe

SAMPLES = Path(__file__).parents[1] / "samples" / "digits"
WIDTH, HEADS, INNER, TOKENS = 768, 12, 3072, 128
RECIPES: Mapping[str, Recipe | str] = {
    "`int8` weights only": "int8",
    "`w8a8`": "w8a8",
    "`w8a8`, `range: dynamic`": parse_recipe(
        "rules: [{weight: {format: int8}, activation: {format: uint8, symmetric: false, range: dynamic}}]"
    ),
}


def make_encoder(layers: int) -> onnx.ModelProto:
    """Hidden states [batch, 128, 768] -> the same; each weight a [K, N] initializer."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def constant(name: str, array: np.ndarray) -> str:
        tensors.append(numpy_helper.from_array(array, name))
        return name

    def add(operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def linear(x: str, name: str, k: int, n: int) -> str:
        weight = (rng.standard_normal((k, n), np.float32) / np.sqrt(k)).astype(np.float32)
        product = add("MatMul", x, constant(f"{name}.weight", weight))
        return add("Add", product, constant(f"{name}.bias", rng.standard_normal(n, np.float32) * np.float32(0.02)))

    def norm(x: str, name: str) -> str:
        ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        return add("LayerNormalization", x, constant(f"{name}.gamma", ones), constant(f"{name}.beta", zeros), axis=-1)

    split = constant("split", np.array([0, TOKENS, HEADS, WIDTH // HEADS]))
    joined = constant("joined", np.array([0, TOKENS, WIDTH]))
    root = constant("root", np.array(np.sqrt(WIDTH // HEADS), np.float32))
    x = "hidden"
    for layer in range(layers):
        parts = {part: linear(x, f"{layer}.{part}", WIDTH, WIDTH) for part in ("query", "key", "value")}
        heads = {part: add("Reshape", value, split) for part, value in parts.items()}
        query = add("Div", add("Transpose", heads["query"], perm=[0, 2, 1, 3]), root)
        scores = add("Softmax", add("MatMul", query, add("Transpose", heads["key"], perm=[0, 2, 3, 1])), axis=-1)
        mixed = add("MatMul", scores, add("Transpose", heads["value"], perm=[0, 2, 1, 3]))
        attended = add("Reshape", add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
        x = norm(add("Add", x, linear(attended, f"{layer}.output", WIDTH, WIDTH)), f"{layer}.norm1")
        inner = add("Gelu", linear(x, f"{layer}.up", WIDTH, INNER))
        x = norm(add("Add", x, linear(inner, f"{layer}.down", INNER, WIDTH)), f"{layer}.norm2")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", TOKENS, WIDTH]) for n in ("hidden", x)]
    graph = helper.make_graph(nodes, "encoder", ends[:1], ends[1:], tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    )


def race(models: Mapping[str, Path], feed: Mapping[str, np.ndarray], seconds: float) -> dict[str, float]:
    """The fastest run of each model in milliseconds; all run in turns."""
    sessions = {name: onnxq.session(path, providers=["cpu"], threads=1) for name, path in models.items()}
    best = dict.fromkeys(models, float("inf"))
    for opened in sessions.values():
        opened.run(None, feed)
    end = time.perf_counter() + seconds * len(models)
    while time.perf_counter() < end:
        for name, opened in sessions.items():
            start = time.perf_counter()
            opened.run(None, feed)
            best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def variants(model: Path, data: Mapping[str, np.ndarray], folder: Path) -> dict[str, Path]:
    """The float model, and what each recipe makes of it."""
    made = {"float32": model}
    for number, (name, recipe) in enumerate(RECIPES.items()):
        made[name] = folder / f"{model.stem}-{number}.onnx"
        onnxq.quantize(model, recipe, output=made[name], calibration=onnxq.Calibration(data, samples=32), force=True)
    return made


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="of the encoder")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each variant of each model")
    options = parser.parse_args()
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, one thread\n")
    print("| model | input | recipe | ms | times as fast as float32 |\n| --- | --- | --- | --- | --- |")
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = dict(np.load(SAMPLES / "test.npz"))["image"]
        encoder = folder / "encoder.onnx"
        encoder.write_bytes(make_encoder(options.layers).SerializeToString())
        states = rng.standard_normal((4, TOKENS, WIDTH), np.float32)
        runs = [(SAMPLES / "resnet.onnx", "image", images, rows) for rows in (1, 64)]
        runs.append((encoder, "hidden", states, 1))
        for model, input_name, data, rows in runs:
            times = race(variants(model, {input_name: data[:256]}, folder), {input_name: data[:rows]}, options.seconds)
            for recipe, took in times.items():
                ratio = f"{times['float32'] / took:.2f}"
                shape = " x ".join(map(str, data[:rows].shape))
                print(f"| {model.stem} | {shape} | {recipe} | {took:.3f} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
