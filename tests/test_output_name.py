"""Where a conversion writes when nobody says so."""

from pathlib import Path

import onnx
import pytest

from onnxq.api import quantize
from onnxq.errors import OutputError

MODEL = """<ir_version: 10, opset_import: ["": 21]>
g (float[m, 64] x) => (float[m, 64] y) { y = MatMul(x, w) }"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(MODEL)
    proto.graph.initializer.append(onnx.helper.make_tensor("w", 1, [64, 64], [0.5] * 4096))
    path = tmp_path / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_the_output_stands_beside_the_model_and_is_named_by_the_recipe(model: Path) -> None:
    report = quantize(model, "int8")
    assert report.output == str(model.with_name("net-int8.onnx"))
    assert Path(report.output).exists()
    with pytest.raises(OutputError, match="net-int8"):
        quantize(model, "int8")


def test_a_recipe_without_a_name_is_called_as_its_file(model: Path) -> None:
    recipe = model.with_name("my recipe.yaml")
    recipe.write_text("rules:\n  - weight: {format: int8}\n")
    report = quantize(model, recipe)
    assert report.recipe == "my recipe"
    assert report.output == str(model.with_name("net-my-recipe.onnx"))
