import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from onnxq.model.load import from_proto
from onnxq.model.overrides import Addend, is_overridable, overridable
from onnxq.model.sites import find_weights

ort = pytest.importorskip("onnxruntime")

RNG = np.random.default_rng(0)


def whole(*shape):
    """Small whole numbers: products of them are exact in float32, whatever the order."""
    return RNG.integers(-8, 9, shape).astype(np.float32)


W, V, X = whole(4, 3), whole(3, 2), whole(5, 4)
MODEL = """g (float[N,4] x) => (float[N,2] y) {
    h = MatMul(x, w)
    r = Relu(h)
    turned = Transpose<perm = [1, 0]>(v)
    m = MatMul(r, turned)
    s = Identity(r)
    total = ReduceSum(s)
    y = Add(m, total)
}"""


@pytest.fixture(params=["initializer", "Constant"])
def model(request):
    """Two products, the second weight transposed; both weights as initializers or as nodes."""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> {MODEL}')
    tensors = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(np.ascontiguousarray(V.T), "v")]
    if request.param == "initializer":
        made.graph.initializer.extend(tensors)
    else:
        nodes = [onnx.helper.make_node("Constant", [], [each.name], value=each) for each in tensors]
        nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in made.graph.node]
        del made.graph.node[:]
        made.graph.node.extend(nodes)
    return from_proto(made)


def opened(source):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(source, options)


def expected(w=W, v=V, added=0.0):
    hidden = np.maximum(X @ w, 0)
    return (hidden + added) @ v + hidden.sum()


def test_weights_can_be_given_and_left_out(model):
    weights = find_weights(model.ir)
    assert all(is_overridable(weight, model.ir) for weight in weights)
    before = ir.to_proto(model.ir).SerializeToString()
    with overridable(model, weights) as source:
        session = opened(source)
        assert [each.name for each in session.get_inputs()] == ["x"]
        other = whole(4, 3)
        turned = whole(2, 3)
        for given, wanted in (({}, expected()), ({"w": other}, expected(other)), ({"v": turned}, expected(v=turned.T))):
            (found,) = session.run(["y"], {"x": X, **given})
            assert np.array_equal(found, wanted)
    assert ir.to_proto(model.ir).SerializeToString() == before


def test_what_is_added_reaches_only_the_reader_that_is_named(model):
    addend = Addend("r", ir.DataType.FLOAT, (("m", 0),))
    with overridable(model, addends=[addend], outputs=["r", "y"]) as source:
        session = opened(source)
        noise = whole(5, 3)
        plain, inner = session.run(["y", "r"], {"x": X})
        assert np.array_equal(plain, expected())
        (found,) = session.run(["y"], {"x": X, addend.name: noise})
        assert np.array_equal(found, expected(added=noise))
        assert np.array_equal(inner, np.maximum(X @ W, 0))


def test_weights_in_subgraphs_cannot_be_given():
    text = """<ir_version: 10, opset_import: ["": 21]> g (bool c, float[4,4] x) => (float[4,4] y) {
        y = If(c) <then_branch = a () => (float[4,4] p) <float[4,4] w = {}> { p = MatMul(x, w) },
                   else_branch = b () => (float[4,4] q) { q = Identity(x) }>
    }""".replace("{}", "{" + ",".join("1" * 16) + "}")
    model = from_proto(parser.parse_model(text))
    assert [is_overridable(weight, model.ir) for weight in find_weights(model.ir)] == [False]
