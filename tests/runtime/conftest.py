from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

HEADER = '<ir_version: 13, opset_import: ["": 25, "com.microsoft": 1]>'


@pytest.fixture
def model_of():
    """Make a model of ONNX text, with arrays as its initializers."""

    def make(text: str, **weights: np.ndarray) -> onnx.ModelProto:
        model = parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        return model

    return make


@pytest.fixture
def optimized(tmp_path: Path):
    """What onnxruntime makes of a model: how many of each operator, and its MatMulNBits by (bits, accuracy level)."""

    def make(
        model: onnx.ModelProto, accuracy_level: int | None = None
    ) -> tuple[Counter[str], Counter[tuple[int, int]]]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        if accuracy_level is not None:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        nodes = list(all_nodes(onnx.load(tmp_path / "optimized.onnx").graph))
        kinds = Counter[tuple[int, int]]()
        for node in nodes:
            if node.op_type == "MatMulNBits":
                attributes = {each.name: each.i for each in node.attribute}
                kinds[attributes["bits"], attributes.get("accuracy_level", 0)] += 1
        return Counter(node.op_type for node in nodes), kinds

    return make


def all_nodes(graph: onnx.GraphProto):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)
