from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

HEADER = '<ir_version: 13, opset_import: ["": 25]>'


@pytest.fixture
def model_file(tmp_path: Path):
    """Write a model of ONNX text, with arrays as its initializers; the path of it."""

    def make(text: str, name: str = "model.onnx", **weights: np.ndarray) -> Path:
        model = parser.parse_model(HEADER + text)
        model.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
        (tmp_path / name).write_bytes(model.SerializeToString())
        return tmp_path / name

    return make
