from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.model.load import Model, from_proto


@pytest.fixture
def proto() -> Callable[..., onnx.ModelProto]:
    """A message of ONNX text, with arrays as its initializers."""

    def make(text: str, opset: int = 21, **weights: np.ndarray) -> onnx.ModelProto:
        made = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}')
        made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        return made

    return make


@pytest.fixture
def model(proto: Callable[..., onnx.ModelProto]) -> Callable[..., Model]:
    """The same, loaded."""
    return lambda *arguments, **weights: from_proto(proto(*arguments, **weights))


@pytest.fixture
def integers() -> Callable[..., np.ndarray]:
    """Small whole numbers as float32: their sums of products are exact in float32, whatever the order."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.integers(-8, 9, shape).astype(np.float32)
