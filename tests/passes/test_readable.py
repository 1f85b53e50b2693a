"""What somebody sees who opens a quantized file in a graph viewer."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.api import quantize_proto
from onnxq.recipes import parse_recipe

TEXT = """
<ir_version: 10, opset_import: ["": 20]>
model (float[batch, 64] x, float[batch, 3, 8, 8] image) => (float[batch, 32] y, float[batch, 4, 6, 6] z) {
  [mlp_up] h = MatMul(x, up_w)
  [mlp_down] y = MatMul(h, down_w)
  [conv] z = Conv(image, conv_w)
}
"""
CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm" / "model.onnx"
ROUNDED = ("fp4", "fp6", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "nvfp4")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    made = parser.parse_model(TEXT)
    for name, shape in {"up_w": (64, 64), "down_w": (64, 32), "conv_w": (4, 3, 3, 3)}.items():
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    made.graph.node[0].doc_string = "File model.py, line 3"
    return made


@pytest.mark.parametrize("target", ["ort", "ort-int8", "standard"])
@pytest.mark.parametrize("recipe", ROUNDED)
def test_each_quantized_weight_is_described_where_it_is_read(model, recipe, target):
    made, report = quantize_proto(model, recipe, target=target)
    texts = "\n".join(node.doc_string for node in made.graph.node)
    for entry in report.quantized:
        described = rf"^{re.escape(entry.weight)} in {re.escape(str(entry.spec))}, SQNR \d+\.\d dB$"
        assert re.search(described, texts, re.MULTILINE), entry
    assert "File model.py, line 3" in texts


@pytest.mark.parametrize("recipe", ROUNDED)
def test_names_tell_where_a_node_or_constant_comes_from(model, recipe):
    made, report = quantize_proto(model, recipe)
    constants = {each.name for each in made.graph.initializer}
    for entry in report.quantized:
        assert f"{entry.weight}_quantized" in constants
        assert f"{entry.weight}_scale" in constants
    assert {"mlp_up", "mlp_down", "conv"} <= {node.name for node in made.graph.node}
    assert all(node.name for node in made.graph.node)
    assert all(re.match(r"(up|down|conv)_w_[a-z_]+$", name) for name in constants)


@pytest.mark.parametrize("recipe", ["fp6", "int3", "mxfp4", "nvfp4"])
def test_every_function_says_what_it_means(model, recipe):
    made, _ = quantize_proto(model, recipe)
    assert made.functions
    for function in made.functions:
        assert function.doc_string.startswith(f"`{function.name}(")
        assert len(function.doc_string) > 60
        assert "<F>" not in function.doc_string
        assert "<bits>" not in function.doc_string


def test_the_file_says_what_made_it_and_from_which_recipe(model):
    recipe = parse_recipe("name: mine\nextends: fp4\nrules:\n- match: {name: '*down*'}\n  skip: too sensitive")
    made, report = quantize_proto(model, recipe)
    kept = {each.key: each.value for each in made.metadata_props}
    assert kept["onnxq.version"] == report.version
    assert kept["onnxq.target"] == "ort"
    assert re.search(
        rf"onnx {re.escape(onnx.__version__)}, .*numpy {re.escape(np.__version__)}", kept["onnxq.versions"]
    )
    # JSON is YAML too.
    assert parse_recipe(kept["onnxq.recipe"]) == recipe


def test_the_sample_is_described_in_full():
    made, report = quantize_proto(onnx.load(CODE_LM), "fp6")
    described = [node.doc_string for node in made.graph.node if node.domain == "onnxq"]
    assert len(described) == len(report.quantized) == 42
    assert all(re.match(r"\w+ in fp6_e\dm\d, per channel, SQNR \d\d\.\d dB$", text) for text in described)
