"""What a product computes beside x @ w."""

import pytest
from onnx import parser

from onnxq.model.load import from_proto
from onnxq.model.products import is_plain_product, is_unscaled, with_bias
from onnxq.model.scopes import nodes

TEXT = """
<ir_version: 9, opset_import: ["": 19, "d": 1]>
g (float[2,3] x, float[3,4] w, float[4] b) => (float[2,4] y) { y = d.f <a = 1.0, t = 0>(x, w, b) }
<domain: "d", opset_import: ["": 19]> f <a, t> (x, w, b) => (y) { CODE }
"""


def node(code):
    return nodes(from_proto(parser.parse_model(TEXT.replace("CODE", code))).ir)[-1]


@pytest.mark.parametrize(
    ("code", "plain", "unscaled"),
    [
        ("y = MatMul(x, w)", True, True),
        ("y = Gemm(x, w, b)", True, True),
        ("y = Gemm<transB = 1>(x, w, b)", True, True),
        ("y = Gemm<transA = 1>(x, w, b)", False, True),
        ("y = Gemm<alpha = 2.0>(x, w, b)", False, False),
        ("y = Gemm<beta = 2.0>(x, w, b)", False, False),
        ("y = Gemm<beta = 2.0>(x, w)", True, False),
        ("y = Gemm<alpha: float = @a>(x, w, b)", False, False),
        ("y = Gemm<transA: int = @t>(x, w, b)", False, True),
    ],
)
def test_what_a_product_does_beside_multiplying(code, plain, unscaled):
    assert is_plain_product(node(code)) == plain
    assert is_unscaled(node(code)) == unscaled


@pytest.mark.parametrize(
    ("body", "place", "bias"),
    [
        ("y = Gemm(x, w, b)", "Gemm", "b"),
        ("y = Gemm(x, w)", "Gemm", None),
        ("p = MatMul(x, w) y = Add(p, b)", "Add", "b"),
        ("p = MatMul(x, w) y = Add(b, p)", "Add", "b"),
        ("p = MatMul(x, w) q = Relu(p) y = Add(p, b)", "MatMul", None),
        ("p = MatMul(x, w) y = Add(p, p)", "MatMul", None),
    ],
)
def test_the_bias_behind_a_product(body, place, bias):
    text = f"""<ir_version: 9, opset_import: ["": 19]>
    g (float[2,3] x, float[3,4] w, float[4] b) => (float[2,4] y) {{ {body} }}"""
    product = nodes(from_proto(parser.parse_model(text)).ir)[0]
    last, value = with_bias(product, 4)
    assert (last.op_type, value and value.name) == (place, bias)
