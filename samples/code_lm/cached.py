"""Write the sample model with a cache of keys and values, from the weights in model.onnx.

python samples/code_lm/cached.py                        # model_with_past.onnx in the current folder
python samples/code_lm/cached.py --form grouped -o grouped.onnx

`plain` is made of standard operators; `grouped` of onnxruntime's fused ones. Both give the logits of model.onnx.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "shapes"))

from decoder import Decoder, Form, build  # noqa: E402

SIZES = Decoder(
    vocabulary=4096, width=256, layers=6, heads=8, kv_heads=2, feed_forward=704, context=4096 + 512, tied=True
)
# In the order in which the layers of model.onnx multiply with them.
MATRICES = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def trained_weights(path: Path) -> dict[str, NDArray[np.generic]]:
    """The weights of model.onnx by the names of its layers; matrices are float16."""
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    casts = {node.output[0]: stored[node.input[0]] for node in graph.node if node.input and node.input[0] in stored
             and node.op_type == "Cast"}  # fmt: skip
    products = [casts[node.input[1]] for node in graph.node if node.op_type == "MatMul" and node.input[1] in casts]
    names = [f"layers.{layer}.{matrix}.weight" for layer in range(SIZES.layers) for matrix in MATRICES]
    norms = {name: array for name, array in stored.items() if name.endswith("norm.weight")}
    return {**norms, **dict(zip(names, products, strict=True)), "embedding": casts["embedding.weight"]}


def cached(form: Form = "plain", source: Path = HERE / "model.onnx", dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """The model with a cache; each matrix is stored as float16 and computed with in float32, as in model.onnx.

    `dtype` FLOAT16 computes in that: onnxruntime's grouped attention runs on a GPU in no other type but bfloat16.
    """
    weights = trained_weights(source)

    def stored(name: str, shape: tuple[int, ...]) -> TensorProto:
        array = weights[name]
        assert array.shape == shape, f"{name} is {array.shape}, not {shape}"
        return numpy_helper.from_array(array, name)

    return build(SIZES, stored, form, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=("plain", "grouped"), default="plain")
    parser.add_argument("-o", "--output", type=Path, default=Path("model_with_past.onnx"))
    options = parser.parse_args()
    onnx.save(cached(options.form), options.output)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
