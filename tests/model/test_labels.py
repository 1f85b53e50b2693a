"""Weights are called as the exporter's own words allow: by module, by the path in a node's name, or by their name."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.analysis.stored import find_stored
from onnxq.model.sites import find_weights

LINEAR = (
    ": model.LM/layers.0: model.Block/layers.0.mlp.up: torch.nn.modules.linear.Linear/linear_3: aten.linear.default"
)
FUNCTIONAL = ": model.LM/layers.1: model.Block/matmul: aten.matmul.default"


def model(weight: str, node: str, namespace: str | None) -> onnx.ModelProto:
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[2,64] x) => (float[2,64] y) { [n] y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.float32), weight))
    proto.graph.node[0].input[1] = weight
    proto.graph.node[0].name = node
    if namespace:
        proto.graph.node[0].metadata_props.add(key="namespace", value=namespace)
    return proto


@pytest.mark.parametrize(
    ("weight", "node", "namespace", "label"),
    [
        ("val_26", "node_linear_3", LINEAR, "layers.0.mlp.up"),
        ("val_26", "node_matmul", FUNCTIONAL, "layers.1"),
        ("layers.0.mlp.up.weight", "node_linear_3", LINEAR, "layers.0.mlp.up.weight"),
        ("val_26", "node_linear_3", "not what torch writes", "val_26"),
        ("val_26", "node_linear_3", None, "val_26"),
        ("onnx::MatMul_812", "/layers.0/mlp/up/MatMul", None, "/layers.0/mlp/up/MatMul"),
        ("onnx::MatMul_812", "", None, "onnx::MatMul_812"),
    ],
)
def test_label(weight: str, node: str, namespace: str | None, label: str) -> None:
    (found,) = find_weights(ir.from_proto(model(weight, node, namespace)))
    assert found.label == label
    assert {weight, label} <= set(found.names)


@pytest.mark.parametrize("recipe", ["fp6", "int4", "int2"])
def test_a_module_picks_its_weight_and_names_it_in_the_file_that_comes_of_it(recipe: str) -> None:
    made, report = onnxq.quantize_proto(model("val_26", "node_linear_3", LINEAR), recipe, include="*.mlp.up")
    assert [each.label for each in report.quantized] == ["layers.0.mlp.up"]
    assert [each.label for each in find_stored(ir.from_proto(made))] == ["layers.0.mlp.up"]
