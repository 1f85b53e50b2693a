"""An oracle for quantized weights: what a node's operand means by the ONNX text alone, in numpy.

Nothing here uses onnxq: bits are taken apart with `unpackbits`, values come from ml_dtypes and from the definition of
each format, and `DequantizeLinear`, the operators of the domain `onnxq` and `MatMulNBits` are computed as documented.
"""

import re
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

VIEWS = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze")
DTYPES = {
    onnx.TensorProto.FLOAT: np.dtype(np.float32),
    onnx.TensorProto.FLOAT16: np.dtype(np.float16),
    onnx.TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
SMALL = {
    onnx.TensorProto.INT2: 2,
    onnx.TensorProto.UINT2: 2,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.FLOAT4E2M1: 4,
    onnx.TensorProto.FLOAT6E2M3: 6,
    onnx.TensorProto.FLOAT6E3M2: 6,
    onnx.TensorProto.FLOAT8E4M3FN: 8,
    onnx.TensorProto.FLOAT8E5M2: 8,
}
NAMES = {
    onnx.TensorProto.FLOAT4E2M1: "FP4E2M1",
    onnx.TensorProto.FLOAT6E2M3: "FP6E2M3",
    onnx.TensorProto.FLOAT6E3M2: "FP6E3M2",
    onnx.TensorProto.FLOAT8E4M3FN: "FP8E4M3",
    onnx.TensorProto.FLOAT8E5M2: "FP8E5M2",
}
# QLoRA (arXiv 2305.14314), appendix E, in seven digits.
NF4 = """
-1.0 -0.6961928 -0.52507305 -0.3949175 -0.28444138 -0.18477343 -0.09105004 0.0
0.0795803 0.1609302 0.2461123 0.33791524 0.44070983 0.562617 0.72295684 1.0
"""


def table(suffix: str) -> np.ndarray:
    """The value of each code of a format, by the name that operators give it."""
    if suffix == "NF4":
        return np.array(NF4.split(), np.float32)
    if special := {"FP8E4M3": ml_dtypes.float8_e4m3fn, "FP8E5M2": ml_dtypes.float8_e5m2}.get(suffix):
        return np.arange(256, dtype=np.uint8).view(special).astype(np.float32)
    if match := re.fullmatch(r"FP(\d)E(\d)M(\d)", suffix):
        bits, e, m = map(int, match.groups())
        bias = 2 ** (e - 1) - 1
        half = [
            (code % 2**m / 2**m + (1 if code >> m else 0)) * 2.0 ** (max(code >> m, 1) - bias)
            for code in range(2 ** (bits - 1))
        ]
        return np.array(half + [-value for value in half], np.float32)
    match = re.fullmatch(r"(U?)INT(\d)", suffix)
    assert match, suffix
    bits = int(match[2])
    codes = np.arange(2**bits)
    return (codes if match[1] else (codes + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)).astype(np.float32)


def codes_of(raw: bytes, bits: int, count: int) -> np.ndarray:
    """Dense codes, least significant bit first."""
    stream = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return np.packbits(stream, axis=1, bitorder="little")[:, 0]


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """The values of a tensor; integers and floats of at most eight bits as float32."""
    if tensor.data_type not in SMALL or not tensor.HasField("raw_data"):
        return numpy_helper.to_array(tensor)
    bits, shape = SMALL[tensor.data_type], tuple(tensor.dims)
    suffix = NAMES.get(tensor.data_type) or onnx.TensorProto.DataType.Name(tensor.data_type)
    return table(suffix)[codes_of(tensor.raw_data, bits, int(np.prod(shape)))].reshape(shape)


def dequantize(values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int) -> np.ndarray:
    """(value - zero point) * scale, both repeated along `axis` in blocks; all in float32."""

    def spread(each: np.ndarray) -> np.ndarray:
        if each.size == 1 and each.ndim <= 1:
            return each.reshape(())
        if block:
            return np.take(each, np.arange(values.shape[axis]) // block, axis=axis)
        return each.reshape([-1 if at == axis % values.ndim else 1 for at in range(values.ndim)])

    values = values.astype(np.float32)
    if zero is not None:
        values = values - spread(zero.astype(np.float32))
    return values * spread(scale.astype(np.float32))


def _constant(attribute: onnx.AttributeProto) -> onnx.TensorProto:
    if attribute.name == "value":
        return attribute.t
    return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute)))


def shown(op_type: str, first: np.ndarray, rest: list[np.ndarray], attributes: dict) -> np.ndarray:
    """What a node that moves no numbers makes of a constant."""
    match op_type:
        case "Transpose":
            return first.transpose(attributes.get("perm"))
        case "Cast":
            return first.astype(DTYPES[attributes["to"]])
        case "Reshape":
            return first.reshape([first.shape[at] if dim == 0 else dim for at, dim in enumerate(rest[0])])
        case "Squeeze":
            return first.squeeze(tuple(rest[0]))
        case "Unsqueeze":
            return np.expand_dims(first, tuple(rest[0]))
    return first


class Scope:
    """The constants that a graph or function body sees."""

    def __init__(self, body: onnx.GraphProto | onnx.FunctionProto, outer: "Scope | None" = None) -> None:
        self.outer = outer
        self.tensors = {each.name: each for each in getattr(body, "initializer", ())}
        self.makers = {name: node for node in body.node for name in node.output}

    def tensor(self, name: str) -> onnx.TensorProto | None:
        if name in self.tensors:
            return self.tensors[name]
        maker = self.makers.get(name)
        if maker is not None:
            return _constant(maker.attribute[0]) if maker.op_type == "Constant" else None
        return self.outer.tensor(name) if self.outer else None

    def value(self, name: str) -> tuple[np.ndarray, bool] | None:
        """A constant operand, and whether it comes from codes; None for anything else."""
        if (tensor := self.tensor(name)) is not None:
            return array_of(tensor), False
        node = self.makers.get(name)
        if node is None:
            return self.outer.value(name) if self.outer else None
        own = node.domain == "onnxq" and not node.op_type.startswith("Gather")
        if node.op_type not in VIEWS and node.op_type != "DequantizeLinear" and not own:
            return None
        given = [self.value(each) if each else None for each in node.input]
        if given[0] is None:
            return None
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        first, coded = given[0]
        rest = [None if each is None else each[0] for each in given[1:]]
        if node.op_type == "DequantizeLinear":
            return self._dequantize_linear(first, rest, attributes), True
        if own:
            return self._dequantize_onnxq(node.op_type, first, rest, attributes), True
        return shown(node.op_type, first, rest, attributes), coded

    def _dequantize_linear(self, first, rest, attributes) -> np.ndarray:
        scale, zero = rest[0], rest[1] if len(rest) > 1 else None
        result = dequantize(first, scale, zero, attributes.get("axis", 1), attributes.get("block_size", 0))
        return result.astype(DTYPES[attributes["output_dtype"]] if attributes.get("output_dtype") else scale.dtype)

    def _dequantize_onnxq(self, op_type, first, rest, attributes) -> np.ndarray:
        if op_type == "AddOutliers":
            gaps, values = rest
            sparse = np.zeros(first.size, np.float32)
            sparse[np.cumsum(gaps.astype(np.int64))] = values
            return (first + sparse.reshape(first.shape)).astype(DTYPES[attributes["dtype"]])
        if op_type == "PartlyBinary":
            return self._partly_binary(first, rest, attributes)
        if op_type.startswith("Scale"):
            kind = {"ScaleE8M0": ml_dtypes.float8_e8m0fnu, "ScaleE4M3": ml_dtypes.float8_e4m3fn}[op_type]
            return first.astype(np.uint8).view(kind).astype(np.float32) * rest[0]
        return self.packed(op_type.removeprefix("Dequantize"), first, rest, attributes)

    def _partly_binary(self, sign, rest, attributes) -> np.ndarray:
        mask, scale, mean, salient, salient_scale = rest
        shape, axis = tuple(attributes["shape"]), attributes["axis"]
        marks = codes_of(mask.astype(np.uint8).tobytes(), 1, int(np.prod(shape))).astype(bool).reshape(shape)
        signs, integers = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        signs[~marks] = codes_of(sign.astype(np.uint8).tobytes(), 1, int((~marks).sum())) * 2.0 - 1
        integers[marks] = salient
        rows = np.arange(shape[axis]) // attributes["block_size"]
        scale, mean = (np.take(each.astype(np.float32), rows, axis=axis) for each in (scale, mean))
        whole = np.where(marks, integers * salient_scale.astype(np.float32), signs * scale + mean)
        return whole.astype(DTYPES[attributes["dtype"]])

    def packed(self, suffix: str, stream: np.ndarray, rest: list[np.ndarray], attributes: dict) -> np.ndarray:
        """`Dequantize<suffix>`: packed codes, scale[, packed zero points]."""
        shape, learned = tuple(attributes["shape"]), suffix.startswith("CODEBOOK")
        values = rest[1] if learned else table(suffix.removesuffix("Asymmetric"))
        bits = len(values).bit_length() - 1
        units = values[codes_of(stream.astype(np.uint8).tobytes(), bits, int(np.prod(shape)))].reshape(shape)
        zero = None
        if suffix.endswith("Asymmetric"):
            raw = rest[1].astype(np.uint8).tobytes()
            zero = values[codes_of(raw, bits, rest[0].size)].reshape(rest[0].shape)
        result = dequantize(units, rest[0], zero, attributes.get("axis", 0), attributes["block_size"])
        return result.astype(DTYPES[attributes["dtype"]])

    def _rows(self, node: onnx.NodeProto, attributes: dict) -> np.ndarray:
        """`Gather<suffix>`: a table of packed rows, scale[, zero points of a byte], of which some are looked up."""
        suffix, shape = node.op_type.removeprefix("Gather"), tuple(attributes["shape"])
        stream, scale, *zero = (self.value(each)[0] for each in node.input[:-1])
        values = table(suffix.removesuffix("Asymmetric"))
        bits = len(values).bit_length() - 1
        units = values[codes_of(stream.astype(np.uint8).tobytes(), bits, int(np.prod(shape)))].reshape(shape)
        zeros = values[zero[0].astype(np.uint8)] if zero else None
        return dequantize(units, scale, zeros, 1, attributes["block_size"]).astype(DTYPES[attributes["dtype"]])

    def operand(self, node: onnx.NodeProto, index: int) -> np.ndarray | None:
        """The quantized weight that a node reads as input `index`, in the shape in which its plain form reads it."""
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "MatMulNBits":
            if index != 1:
                return None
            codes, scale = self.value(node.input[1])[0], self.value(node.input[2])[0]
            k, n = attributes["K"], attributes["N"]
            assert attributes["bits"] == 8
            assert len(node.input) == 3
            blocks = -(-k // attributes["block_size"])
            weight = (codes - 128) * scale.reshape(n, blocks, 1).astype(np.float32)
            return weight.reshape(n, -1)[:, :k].T.astype(scale.dtype)
        if node.domain == "onnxq" and node.op_type.startswith("Gather"):
            return self._rows(node, attributes) if index == 0 else None
        if node.domain == "onnxq" and node.op_type.startswith(("MatMul", "Linear")):
            if index != 1:
                return None
            suffix = node.op_type.removeprefix("MatMul").removeprefix("Linear")
            given = node.input[2 : 4 if suffix.endswith("Asymmetric") or suffix.startswith("CODEBOOK") else 3]
            rest = [self.value(each)[0] for each in given]
            return self.packed(suffix, self.value(node.input[1])[0], rest, attributes)
        found = self.value(node.input[index]) if index < len(node.input) and node.input[index] else None
        return found[0] if found and found[1] else None


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting = [model.graph, *model.functions]
    while waiting:
        for node in waiting.pop().node:
            yield node
            waiting.extend(graph for _, graph in bodies(node))


class Decoded:
    """The original model with the weights that an emitted model means, as floats.

    Attributes:
        model: To run.
        weights: By (node, input), in the shape in which the original operator reads them.
    """

    def __init__(self, original: onnx.ModelProto, emitted: onnx.ModelProto) -> None:
        self.weights: dict[tuple[str, int], np.ndarray] = {}
        self.model = onnx.ModelProto()
        self.model.CopyFrom(original)
        self._graph(self.model.graph, emitted.graph, Scope(emitted.graph))
        theirs = {(each.domain, each.name): each for each in emitted.functions}
        for function in self.model.functions:
            other = theirs[function.domain, function.name]
            self._graph(function, other, Scope(other))

    def _graph(self, ours, theirs, scope: Scope) -> None:
        by_name = {node.name: node for node in theirs.node}
        fresh = []
        for node in ours.node:
            if node.op_type == "Constant" or not node.name or node.name not in by_name:
                continue
            other = by_name[node.name]
            if other.domain == node.domain and other.op_type == node.op_type:
                assert list(other.output) == list(node.output)
            for index in range(len(node.input)):
                weight = scope.operand(other, index)
                if weight is not None:
                    weight = self._turned(node, other, index, weight)
                    self.weights[node.name, index] = weight
                    name = f"oracle_{node.name}_{index}"
                    fresh.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
                    node.input[index] = name
            inner = dict(bodies(other))
            for name, graph in bodies(node):
                self._graph(graph, inner[name], Scope(inner[name], scope))
        if isinstance(ours, onnx.GraphProto):
            ours.initializer.extend(fresh)
        else:
            nodes = [onnx.helper.make_node("Constant", [], [each.name], value=each) for each in fresh]
            kept = list(ours.node)
            del ours.node[:]
            ours.node.extend(nodes + kept)

    @staticmethod
    def _turned(node: onnx.NodeProto, other: onnx.NodeProto, index: int, weight: np.ndarray) -> np.ndarray:
        """Undo a transposition that moved from the operator into the weight."""
        flag = {0: "transA", 1: "transB"}.get(index)
        before, after = ({a.name: a.i for a in each.attribute}.get(flag, 0) for each in (node, other))
        return weight.swapaxes(-1, -2) if before and not after else weight


def quiet_session(model: onnx.ModelProto, **config: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session", name="quiet_session")
def _quiet_session() -> Callable[..., onnxruntime.InferenceSession]:
    return quiet_session


@pytest.fixture(scope="session")
def oracle() -> type[Decoded]:
    return Decoded


@pytest.fixture(scope="session")
def run() -> Callable[[onnx.ModelProto, dict[str, np.ndarray]], list[np.ndarray]]:
    """Run a model in onnxruntime, products in float32 whatever it fuses them to."""

    def call(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        exact = onnx.ModelProto()
        exact.CopyFrom(model)
        for node in all_nodes(exact):
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
        return quiet_session(exact, session__qdq_matmulnbits_accuracy_level="0").run(None, feeds)

    return call
