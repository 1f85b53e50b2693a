"""Small transformers as ONNX text, each a dialect of its own, with random weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

WIDTH, HEADS, INNER, VOCABULARY, BLOCKS = 16, 2, 24, 20, 2
HEAD = WIDTH // HEADS

_CONSTANTS = {
    "two": np.float32(2),
    "last": np.array([-1]),
    "eps": np.float32(1e-5),
    "split_heads": np.array([0, 0, -1, HEAD]),
    "merge_heads": np.array([0, 0, WIDTH]),
    "group": np.array([1, HEADS, 1, 1]),
    "rows": np.array([-1, WIDTH]),
    "sentences": np.array([2, -1, WIDTH]),
    "fused": np.array([2, -1, 3 * WIDTH]),
}


def _rms_norm(x: str, y: str) -> str:
    """Written out; channels of the scale differ by far."""
    return f"""
        {y}_square = Pow({x}, two)
        {y}_mean = ReduceMean<keepdims=1>({y}_square, last)
        {y}_sum = Add({y}_mean, eps)
        {y}_root = Sqrt({y}_sum)
        {y}_inverse = Reciprocal({y}_root)
        {y}_unit = Mul({x}, {y}_inverse)
        {y} = Mul({y}_unit, {y}_gamma)
    """


def _attention(n: str, out: str) -> str:
    """Between `{n}_q`, `{n}_k` and `{n}_v`, all of one head of keys and values a query head, or one for all."""
    return f"""
        {n}_q4 = Reshape({n}_q, split_heads)
        {n}_qh = Transpose<perm=[0, 2, 1, 3]>({n}_q4)
        {n}_k4 = Reshape({n}_k, split_heads)
        {n}_kh = Transpose<perm=[0, 2, 3, 1]>({n}_k4)
        {n}_v4 = Reshape({n}_v, split_heads)
        {n}_vh = Transpose<perm=[0, 2, 1, 3]>({n}_v4)
        {n}_scores = MatMul({n}_qh, {n}_kh)
        {n}_weights = Softmax({n}_scores)
        {n}_mixed = MatMul({n}_weights, {n}_vh)
        {n}_back = Transpose<perm=[0, 2, 1, 3]>({n}_mixed)
        {out} = Reshape({n}_back, merge_heads)
    """


def llama(*, tied: bool = False, vocabulary: int = VOCABULARY) -> onnx.ModelProto:
    """RMS norms, one head of keys and values for all queries, SwiGLU; the head is the embedding where tied."""
    shapes = {"table": (vocabulary, WIDTH), "norm_gamma": (WIDTH,)}
    lines = ["x0 = Gather(table, ids)"]
    for at in range(BLOCKS):
        n = f"b{at}"
        lines += [
            _rms_norm(f"x{at}", f"{n}_first"),
            f"{n}_q = MatMul({n}_first, {n}_wq) {n}_k = MatMul({n}_first, {n}_wk) {n}_v = MatMul({n}_first, {n}_wv)",
            _attention(n, f"{n}_att"),
            f"{n}_o = MatMul({n}_att, {n}_wo) {n}_x = Add(x{at}, {n}_o)",
            _rms_norm(f"{n}_x", f"{n}_second"),
            f"{n}_gate = MatMul({n}_second, {n}_wg) {n}_sigmoid = Sigmoid({n}_gate)",
            f"{n}_silu = Mul({n}_gate, {n}_sigmoid) {n}_up = MatMul({n}_second, {n}_wu)",
            f"{n}_inner = Mul({n}_silu, {n}_up) {n}_down = MatMul({n}_inner, {n}_wd) x{at + 1} = Add({n}_x, {n}_down)",
        ]
        shapes |= {f"{n}_{each}_gamma": (WIDTH,) for each in ("first", "second")}
        shapes |= {f"{n}_wq": (WIDTH, WIDTH), f"{n}_wk": (WIDTH, HEAD), f"{n}_wv": (WIDTH, HEAD)}
        shapes |= {f"{n}_wo": (WIDTH, WIDTH), f"{n}_wd": (INNER, WIDTH)}
        shapes |= {f"{n}_{each}": (WIDTH, INNER) for each in ("wg", "wu")}
    lines.append(_rms_norm(f"x{BLOCKS}", "norm"))
    if tied:
        lines.append("turned = Transpose<perm=[1, 0]>(table) y = MatMul(norm, turned)")
    else:
        shapes["head"] = (WIDTH, vocabulary)
        lines.append("y = MatMul(norm, head)")
    return _model(lines, shapes)


def gpt() -> onnx.ModelProto:
    """LayerNorms, all of attention from one Gemm, GELU, a head without bias; rows are flattened before each Gemm."""
    shapes = {"table": (VOCABULARY, WIDTH), "places": (1, 6, WIDTH), "head": (VOCABULARY, WIDTH)}
    lines = ["tokens = Gather(table, ids) x0 = Add(tokens, places)"]
    for at in range(BLOCKS):
        n = f"b{at}"
        lines += [
            f"{n}_first = LayerNormalization(x{at}, {n}_g1, {n}_s1) {n}_flat = Reshape({n}_first, rows)",
            f"{n}_gemm = Gemm({n}_flat, {n}_wqkv, {n}_bqkv) {n}_qkv = Reshape({n}_gemm, fused)",
            f"{n}_q, {n}_k, {n}_v = Split<axis=-1, num_outputs=3>({n}_qkv)",
            _attention(n, f"{n}_att"),
            f"{n}_att2 = Reshape({n}_att, rows) {n}_o2 = Gemm<transB=1>({n}_att2, {n}_wo, {n}_bo)",
            f"{n}_o = Reshape({n}_o2, sentences) {n}_x = Add({n}_o, x{at})",
            f"{n}_second = LayerNormalization<axis=2>({n}_x, {n}_g2, {n}_s2) {n}_up = MatMul({n}_second, {n}_wu)",
            f"{n}_act = Gelu({n}_up) {n}_down = MatMul({n}_act, {n}_wd) {n}_biased = Add({n}_bd, {n}_down)",
            f"x{at + 1} = Add({n}_x, {n}_biased)",
        ]
        shapes |= {f"{n}_{each}": (WIDTH,) for each in ("g1", "g2", "s1", "s2", "bo", "bd")}
        shapes |= {f"{n}_wqkv": (WIDTH, 3 * WIDTH), f"{n}_bqkv": (3 * WIDTH,), f"{n}_wo": (WIDTH, WIDTH)}
        shapes |= {f"{n}_wu": (WIDTH, INNER), f"{n}_wd": (INNER, WIDTH)}
    shapes |= {"g": (WIDTH,), "s": (WIDTH,)}
    lines.append(f"norm = LayerNormalization(x{BLOCKS}, g, s) turned = Transpose<perm=[1, 0]>(head)")
    lines.append("y = MatMul(norm, turned)")
    return _model(lines, shapes)


def bert() -> onnx.ModelProto:
    """Post-norm: what a LayerNorm puts out is itself added to."""
    shapes = {"table": (VOCABULARY, WIDTH)}
    lines = ["tokens = Gather(table, ids) x0 = LayerNormalization(tokens, g, s)"]
    for at in range(BLOCKS):
        n = f"b{at}"
        lines += [
            f"{n}_up = MatMul(x{at}, {n}_wu) {n}_act = Relu({n}_up) {n}_down = MatMul({n}_act, {n}_wd)",
            f"{n}_sum = Add({n}_down, x{at}) x{at + 1} = LayerNormalization({n}_sum, {n}_g, {n}_s)",
        ]
        shapes |= {f"{n}_wu": (WIDTH, INNER), f"{n}_wd": (INNER, WIDTH), f"{n}_g": (WIDTH,), f"{n}_s": (WIDTH,)}
    shapes |= {"g": (WIDTH,), "s": (WIDTH,), "head": (WIDTH, 4)}
    lines.append(f"y = MatMul(x{BLOCKS}, head)")
    return _model(lines, shapes)


def _model(lines: list[str], shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    body = "\n".join(lines)
    text = f'<ir_version: 10, opset_import: ["": 20]> g (int64[2, 6] ids) => (float[2, 6, n] y) {{ {body} }}'
    model = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / (shape[0] ** 0.5 if len(shape) == 2 else 1)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in _CONSTANTS.items() if name in used
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture(name="llama")
def llama_fixture():
    return llama


@pytest.fixture(name="gpt")
def gpt_fixture():
    return gpt


@pytest.fixture(name="bert")
def bert_fixture():
    return bert


@pytest.fixture(params=["llama", "llama tied", "gpt", "bert"])
def network(request) -> onnx.ModelProto:
    """Each of them."""
    name, *tied = request.param.split()
    return llama(tied=True, vocabulary=300) if tied else {"llama": llama, "gpt": gpt, "bert": bert}[name]()


@pytest.fixture
def with_output():
    """Gives a model one more output."""

    def add(model: onnx.ModelProto, name: str, rank: int = 3) -> onnx.ModelProto:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * rank))
        return model

    return add


@pytest.fixture
def largest_change():
    """The largest difference between what two models put out, relative to the largest output."""

    def measure(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
        feed = {"ids": np.random.default_rng(1).integers(0, VOCABULARY, (2, 6))}
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        sessions = [
            onnxruntime.InferenceSession(each.SerializeToString(), options, providers=["CPUExecutionProvider"])
            for each in (before, after)
        ]
        first, second = (session.run(None, feed) for session in sessions)
        return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(first, second, strict=True))

    return measure
