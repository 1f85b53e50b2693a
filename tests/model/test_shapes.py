"""What inference finds out about a model, and what it must not be trusted with."""

import onnx
import onnx_ir as ir
import onnxruntime
from onnx import parser

from onnxq.model.shapes import Shapes, infer_shapes

BRANCHES = """<ir_version: 10, opset_import: ["": 21]>
g (float[2,3] x, bool c) => (float y) {
    y = If (c) <
        then_branch = a () => (float t) { s = Shape(x) z = ConstantOfShape(s) t = ReduceSum<keepdims=0>(z) },
        else_branch = b () => (float e) {
            h = Shape(x) s = Concat<axis=0>(h, h) z = ConstantOfShape(s) e = ReduceSum<keepdims=0>(z)
        }
    >
}"""


def test_branches_that_call_values_alike_keep_their_own_shapes() -> None:
    model = ir.from_proto(parser.parse_model(BRANCHES))
    infer_shapes(model)
    inferred = ir.to_proto(model)
    onnx.checker.check_model(inferred, full_check=True)
    assert onnxruntime.InferenceSession(inferred.SerializeToString(), providers=["CPUExecutionProvider"])


def test_what_shapes_are_made_of_is_followed() -> None:
    text = (
        '<ir_version: 10, opset_import: ["": 21]> g (float[2,3] x) => (float y) { s = Shape(x) z = ConstantOfShape(s) '
    )
    model = ir.from_proto(parser.parse_model(text + "y = ReduceSum<keepdims=0>(z) }"))
    (made,) = (node.outputs[0] for node in model.graph if node.op_type == "ConstantOfShape")
    assert Shapes(model).of(made) == (2, 3)
    infer_shapes(model)
    assert list(made.shape or ()) == [2, 3]
