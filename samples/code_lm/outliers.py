"""Make models that compute what `model.onnx` computes, with outliers in their activations as large models have them.

    python samples/code_lm/outliers.py channels.onnx             # channels that are 30 to 90 times as large as others
    python samples/code_lm/outliers.py spikes.onnx --spikes      # 300 in one channel of two layers, at the first token

A small model that was trained for a few hours has no outliers, so methods against them show nothing on it. The first
kind lives in channels: a scale for each channel undoes it. The second lives in tokens: a spike is added to a channel,
and another channel, which takes it away again behind the next product, holds it once more; no scale undoes that.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MODEL = Path(__file__).with_name("model.onnx")
SHARE = 0.02
FACTORS = 30.0, 90.0
SPIKE = 300.0
SPIKED_LAYERS = 1, 3


class Network:
    """The graph with its weights in float32, where they can be changed without loss."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take a model whose weights stand behind a Cast from float16."""
        self.graph = model.graph
        stored = {each.name: each for each in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        for cast in [node for node in self.graph.node if node.op_type == "Cast" and node.input[0] in stored]:
            self.graph.node.remove(cast)
            tensor = stored.pop(cast.input[0])
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, cast.output[0]))
            stored[cast.output[0]] = tensor
            del self.makers[cast.output[0]]
        self.tensors = stored

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that read a value."""
        return [node for node in self.graph.node if name in node.input]

    def scale(self, name: str, factors: np.ndarray) -> None:
        """Multiply a constant."""
        array = numpy_helper.to_array(self.tensors[name])
        self.tensors[name].CopyFrom(numpy_helper.from_array((array * factors).astype(np.float32), name))

    def divide_rows(self, value: str, factors: np.ndarray) -> None:
        """Make up for channels of a value in the weights it is multiplied with."""
        for product in self.readers(value):
            if product.op_type != "MatMul" or product.input[0] != value:
                raise ValueError(f"{product.op_type} '{product.name}' reads '{value}' too")
            self.scale(product.input[1], 1 / factors[:, None])


def norms(network: Network) -> list[onnx.NodeProto]:
    """The multiplication by its scale of each normalization that is followed by products with weights of their own."""
    return [node for node in network.graph.node if node.op_type == "Mul" and node.input[1].endswith("_norm.weight")]


def gated(network: Network) -> list[onnx.NodeProto]:
    """The product of gate and up projection in each feed-forward layer."""
    products = [node for node in network.graph.node if node.op_type == "MatMul" and node.input[1] in network.tensors]
    makers = [network.makers.get(product.input[0]) for product in products]
    return [
        maker
        for maker in makers
        if maker is not None and maker.op_type == "Mul" and maker.input[1] not in network.tensors
    ]


def inject_channels(network: Network, rng: np.random.Generator) -> None:
    """Make some channels of every normalization and of every up projection many times as large."""

    def factors(count: int) -> np.ndarray:
        found = np.ones(count)
        chosen = rng.choice(count, max(1, round(SHARE * count)), replace=False)
        found[chosen] = np.exp(rng.uniform(*np.log(FACTORS), len(chosen)))
        return found

    for norm in norms(network):
        chosen = factors(network.tensors[norm.input[1]].dims[0])
        network.scale(norm.input[1], chosen)
        network.divide_rows(norm.output[0], chosen)
    for product in gated(network):
        up = network.makers[product.input[1]]
        chosen = factors(network.tensors[up.input[1]].dims[1])
        network.scale(up.input[1], chosen[None])
        network.divide_rows(product.output[0], chosen)


def inject_spikes(network: Network, rng: np.random.Generator) -> None:
    """Add a spike to one channel of the first token, and the same in a new channel whose weights take it away."""
    tokens = network.graph.input[0].name

    def constant(name: str, array: np.ndarray) -> str:
        network.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    made = [
        helper.make_node("Shape", [tokens], ["spike_count"], start=1, end=2),
        helper.make_node("Squeeze", ["spike_count"], ["spike_tokens"]),
        helper.make_node(
            "Range",
            [constant("spike_0", np.int64(0)), "spike_tokens", constant("spike_1", np.int64(1))],
            ["spike_places"],
        ),
        helper.make_node("Equal", ["spike_places", "spike_0"], ["spike_first"]),
        helper.make_node("Cast", ["spike_first"], ["spike_here"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["spike_here", constant("spike_axis", np.array([-1]))], ["spike"]),
    ]
    products = gated(network)
    for layer in SPIKED_LAYERS:
        value = products[layer].output[0]
        (down,) = network.readers(value)
        weight = numpy_helper.to_array(network.tensors[down.input[1]])
        width = len(weight)
        chosen = int(rng.integers(width))
        where = np.zeros(width + 1, np.float32)
        where[[chosen, width]] = SPIKE
        network.tensors[down.input[1]].CopyFrom(
            numpy_helper.from_array(np.concatenate([weight, -weight[chosen : chosen + 1]]), down.input[1])
        )
        name = f"spike_{layer}"
        pads = constant(f"{name}_pads", np.array([0, 0, 0, 0, 0, 1]))
        at = list(network.graph.node).index(down)
        for node in reversed(
            [
                helper.make_node("Pad", [value, pads], [f"{name}_padded"]),
                helper.make_node("Mul", ["spike", constant(f"{name}_channels", where)], [f"{name}_added"]),
                helper.make_node("Add", [f"{name}_padded", f"{name}_added"], [f"{name}_spiked"]),
            ]
        ):
            network.graph.node.insert(at, node)
        down.input[0] = f"{name}_spiked"
    for node in reversed(made):
        network.graph.node.insert(0, node)


def main() -> None:
    """Write one of the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--spikes", action="store_true", help="spikes in tokens, in place of large channels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = onnx.load(MODEL)
    network, rng = Network(model), np.random.default_rng(options.seed)
    inject = inject_spikes if options.spikes else inject_channels
    inject(network, rng)
    # Shapes of values that a Cast made stay true; those of weights that grew do not.
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), options.output)
    print(f"{options.output}: computes what {MODEL.name} computes")


if __name__ == "__main__":
    main()
