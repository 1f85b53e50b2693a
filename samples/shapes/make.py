"""Write a decoder of a well-known shape with random weights, to measure speed and memory on: LLaMA 3 8B, or 1B.

python samples/shapes/make.py llama-3-8b -o shapes/8b.onnx      # 16 GB in shapes/8b.onnx.data
python samples/shapes/make.py tiny -o tiny.onnx --form plain

Weights are float16, and go one block at a time into the external data: memory stays below 100 MB whatever the shape.
What the model writes means nothing. By default it is made of onnxruntime's fused operators (`--form grouped`).
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from decoder import Decoder, Form, build
from numpy.typing import NDArray
from onnx import TensorProto

# https://huggingface.co/meta-llama: config.json of Meta-Llama-3-8B and of Llama-3.2-1B.
SHAPES = {
    "llama-3-8b": Decoder(128256, 4096, 32, 32, 8, 14336, rope_base=500000.0),
    "llama-3.2-1b": Decoder(128256, 2048, 16, 32, 8, 8192, rope_base=500000.0, tied=True),
    "tiny": Decoder(512, 64, 2, 4, 2, 160, context=512),
}
_STANDARD_DEVIATION = 0.02
_ALIGNMENT = 4096  # a page, so that onnxruntime can map a tensor


class RandomWeights:
    """Initializers whose bytes are appended to a data file; norms are ones, matrices Gaussian.

    Gaussian numbers are drawn once and read again from a random place for each block, since drawing eight billion
    takes minutes.
    """

    def __init__(self, data: BinaryIO, location: str, pool: int = 1 << 24, seed: int = 0) -> None:
        self._data, self._location = data, location
        self._rng = np.random.default_rng(seed)
        drawn = self._rng.standard_normal(pool, np.float32) * _STANDARD_DEVIATION
        self._pool = drawn.astype(np.float16)

    def __call__(self, name: str, shape: tuple[int, ...]) -> TensorProto:
        self._data.write(bytes(-self._data.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = math.prod(shape)
        entries = {"location": self._location, "offset": self._data.tell(), "length": 2 * size}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        for block in self._blocks(size) if len(shape) > 1 else [np.ones(shape, np.float16)]:
            self._data.write(block.data)
        return tensor

    def _blocks(self, size: int) -> Iterator[NDArray[np.float16]]:
        while size:
            start = int(self._rng.integers(self._pool.size))
            block = self._pool[start : start + size]
            size -= block.size
            yield block


def make(sizes: Decoder, output: Path, form: Form = "grouped") -> None:
    """Write `output` and beside it `output`.data."""
    data = output.with_name(f"{output.name}.data")
    with data.open("wb") as file:
        model = build(sizes, RandomWeights(file, data.name), form, TensorProto.FLOAT16)
    onnx.save(model, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--form", choices=("plain", "grouped"), default="grouped")
    parser.add_argument("--layers", type=int, help="fewer of them, for a quick look")
    options = parser.parse_args()
    sizes = SHAPES[options.shape]
    make(replace(sizes, layers=options.layers or sizes.layers), options.output, options.form)
    data = options.output.with_name(f"{options.output.name}.data")
    print(f"{options.output}: {data.stat().st_size:,} bytes of weights")


if __name__ == "__main__":
    main()
