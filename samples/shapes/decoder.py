"""A LLaMA-style decoder with a cache of keys and values as an ONNX graph, weight by weight, from wherever they come.

Two forms of the same arithmetic: `plain` is made of standard operators, as exporters of PyTorch models give it;
`grouped` of onnxruntime's fused operators, as the builder of onnxruntime-genai gives it, whose cache stays in place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Form = Literal["plain", "grouped"]
Weights = Callable[[str, tuple[int, ...]], TensorProto]
"""(name, shape) -> the initializer, [K, N] for a matrix that is multiplied from the right."""

NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


@dataclass(frozen=True)
class Decoder:
    """Sizes of a decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    Attributes:
        context: positions that the grouped form has tables for.
        tied: the output head is the embedding, transposed.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    rope_base: float = 10000.0
    context: int = 8192
    tied: bool = False
    epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def build(sizes: Decoder, weights: Weights, form: Form = "plain", dtype: int = TensorProto.FLOAT) -> ModelProto:
    """The model: `input_ids`, `attention_mask`, `past_key_values.N.{key,value}` to `logits`, `present.N.{key,value}`.

    The plain form takes `position_ids` too. `dtype` is what it computes in; weights of another type get a Cast.
    """
    return _Builder(sizes, weights, form, dtype).model()


class _Builder:
    def __init__(self, sizes: Decoder, weights: Weights, form: Form, dtype: int) -> None:
        self.sizes, self.weights, self.form, self.dtype = sizes, weights, form, dtype
        self.graph = GraphProto(name="decoder")

    def model(self) -> ModelProto:
        sizes, graph = self.sizes, self.graph
        self._inputs_and_outputs()
        embedding = self.weight("embedding", (sizes.vocabulary, sizes.width))
        x = self.op("Gather", embedding, "input_ids", name="embed")
        attend = self._attention()
        skip = None
        for layer in range(sizes.layers):
            normed, x = self.norm(f"layers.{layer}.attention_norm", x, skip)
            skip = attend(layer, normed)
            normed, x = self.norm(f"layers.{layer}.mlp_norm", x, skip)
            skip = self._feed_forward(layer, normed)
        normed, _ = self.norm("norm", x, skip)
        if sizes.tied:
            head = self.op("Transpose", embedding, name="head", perm=[1, 0])
        else:
            head = self.weight("head", (sizes.width, sizes.vocabulary))
        self.op("MatMul", normed, head, name="logits")
        domains = [helper.make_opsetid("", 20)]
        if self.form == "grouped":
            domains.append(helper.make_opsetid("com.microsoft", 1))
        return helper.make_model(graph, opset_imports=domains, ir_version=10)

    def op(self, kind: str, *inputs: str, name: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """Add a node and give its first output, which is called as the node unless `outputs` says otherwise."""
        domain = "com.microsoft" if kind in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization") else ""
        node: NodeProto = helper.make_node(kind, inputs, outputs or (name,), name, domain=domain, **attributes)
        self.graph.node.append(node)
        return node.output[0]

    def constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        tensor = self.weights(name, shape)
        self.graph.initializer.append(tensor)
        if tensor.data_type == self.dtype:
            return tensor.name
        return self.op("Cast", tensor.name, name=f"{name}.cast", to=self.dtype)

    def product(self, name: str, x: str, rows: int, columns: int) -> str:
        return self.op("MatMul", x, self.weight(f"{name}.weight", (rows, columns)), name=name)

    def norm(self, name: str, x: str, skip: str | None) -> tuple[str, str]:
        """RMSNorm of x, or of x + skip: the result, and the sum."""
        gamma = self.weight(f"{name}.weight", (self.sizes.width,))
        epsilon = self.sizes.epsilon
        if self.form == "grouped":
            if skip is None:
                kind = "SimplifiedLayerNormalization"
                return self.op(kind, x, gamma, name=name, axis=-1, epsilon=epsilon, stash_type=1), x
            outputs = (name, "", "", f"{name}.sum")
            kind = "SkipSimplifiedLayerNormalization"
            return self.op(kind, x, skip, gamma, name=name, outputs=outputs, epsilon=epsilon), outputs[3]
        if skip is not None:
            x = self.op("Add", x, skip, name=f"{name}.sum")
        wide = x if self.dtype == TensorProto.FLOAT else self.op("Cast", x, name=f"{name}.wide", to=TensorProto.FLOAT)
        square = self.op("Mul", wide, wide, name=f"{name}.square")
        mean = self.op("ReduceMean", square, self._once("last_axis", [-1]), name=f"{name}.mean")
        shifted = self.op("Add", mean, self._once("epsilon", epsilon, np.float32), name=f"{name}.shifted")
        root = self.op("Sqrt", shifted, name=f"{name}.root")
        unit = self.op("Div", wide, root, name=f"{name}.unit")
        if self.dtype != TensorProto.FLOAT:
            unit = self.op("Cast", unit, name=f"{name}.narrow", to=self.dtype)
        return self.op("Mul", unit, gamma, name=name), x

    def _once(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """A constant that several nodes share."""
        return name if any(each.name == name for each in self.graph.initializer) else self.constant(name, values, dtype)

    def _feed_forward(self, layer: int, x: str) -> str:
        name, sizes = f"layers.{layer}.mlp", self.sizes
        gate = self.product(f"{name}.gate_proj", x, sizes.width, sizes.feed_forward)
        up = self.product(f"{name}.up_proj", x, sizes.width, sizes.feed_forward)
        opened = self.op("Mul", gate, self.op("Sigmoid", gate, name=f"{name}.sigmoid"), name=f"{name}.silu")
        inner = self.op("Mul", opened, up, name=f"{name}.inner")
        return self.product(f"{name}.down_proj", inner, sizes.feed_forward, sizes.width)

    def _projections(self, layer: int, x: str) -> tuple[str, str, str]:
        sizes, name = self.sizes, f"layers.{layer}.attention"
        narrow = sizes.kv_heads * sizes.head_width
        return (
            self.product(f"{name}.q_proj", x, sizes.width, sizes.width),
            self.product(f"{name}.k_proj", x, sizes.width, narrow),
            self.product(f"{name}.v_proj", x, sizes.width, narrow),
        )

    def _attention(self) -> Callable[[int, str], str]:
        return self._grouped_attention() if self.form == "grouped" else self._plain_attention()

    def _grouped_attention(self) -> Callable[[int, str], str]:
        sizes = self.sizes
        count = self.op("ReduceSum", "attention_mask", self.constant("mask_axis", [1]), name="tokens", keepdims=0)
        last = self.op("Sub", count, self.constant("one", 1), name="last_token")
        seqlens = self.op("Cast", last, name="seqlens_k", to=TensorProto.INT32)
        shape = self.op("Shape", "attention_mask", name="mask_shape")
        total = self.op("Gather", shape, self.constant("second", 1), name="mask_length")
        total = self.op("Cast", total, name="total_sequence_length", to=TensorProto.INT32)
        angles = np.arange(sizes.context)[:, None] * self._frequencies()[None, :]
        tables = [
            self.constant(name, table, NUMPY[self.dtype])
            for name, table in (("cos_cache", np.cos(angles)), ("sin_cache", np.sin(angles)))
        ]

        def attend(layer: int, x: str) -> str:
            name = f"layers.{layer}.attention"
            past = (f"past_key_values.{layer}.key", f"past_key_values.{layer}.value")
            inputs = (*self._projections(layer, x), *past, seqlens, total, *tables)
            mixed = self.op(
                "GroupQueryAttention",
                *inputs,
                name=name,
                outputs=(name, f"present.{layer}.key", f"present.{layer}.value"),
                num_heads=sizes.heads,
                kv_num_heads=sizes.kv_heads,
                do_rotary=1,
                scale=sizes.head_width**-0.5,
            )
            return self.product(f"{name}.o_proj", mixed, sizes.width, sizes.width)

        return attend

    def _plain_attention(self) -> Callable[[int, str], str]:
        sizes, op = self.sizes, self.op
        length, total = self._lengths()
        bias = self._bias(length, total)
        cos, sin = self._rotation()
        axis, most = self.constant("head_axis", [-1]), self.constant("most", [np.iinfo(np.int64).max])
        zero, half = self.constant("zero", [0]), self.constant("half", [sizes.head_width // 2])
        # Query heads that share keys stand below each other, so that the cache is read as it is.
        own = op("Concat", *self._dims(0, sizes.heads), length, total, name="own_shape", axis=0)
        shared = op("Concat", *self._dims(0, sizes.kv_heads, -1), total, name="shared_shape", axis=0)
        back = op("Concat", *self._dims(0, sizes.heads), length, *self._dims(sizes.head_width), name="back", axis=0)
        stacked = self.constant("stacked", [0, sizes.kv_heads, -1, sizes.head_width])
        joined = self.constant("joined", [0, 0, sizes.width])
        scale = self.constant("scale", sizes.head_width**-0.5, NUMPY[self.dtype])

        def heads(name: str, x: str, count: int) -> str:
            shape = self._once(f"heads_{count}", [0, 0, count, sizes.head_width])
            return op(
                "Transpose", op("Reshape", x, shape, name=f"{name}.split"), name=f"{name}.heads", perm=[0, 2, 1, 3]
            )

        def rotated(name: str, x: str) -> str:
            low = op("Slice", x, zero, half, axis, name=f"{name}.low")
            high = op("Slice", x, half, most, axis, name=f"{name}.high")
            turned = op("Concat", op("Neg", high, name=f"{name}.neg"), low, name=f"{name}.turned", axis=-1)
            straight = op("Mul", x, cos, name=f"{name}.straight")
            return op("Add", straight, op("Mul", turned, sin, name=f"{name}.across"), name=f"{name}.rotated")

        def attend(layer: int, x: str) -> str:
            name = f"layers.{layer}.attention"
            q, k, v = self._projections(layer, x)
            q = rotated(f"{name}.q", heads(f"{name}.q", q, sizes.heads))
            k = rotated(f"{name}.k", heads(f"{name}.k", k, sizes.kv_heads))
            v = heads(f"{name}.v", v, sizes.kv_heads)
            k = op("Concat", f"past_key_values.{layer}.key", k, name=f"present.{layer}.key", axis=2)
            v = op("Concat", f"past_key_values.{layer}.value", v, name=f"present.{layer}.value", axis=2)
            q = op("Reshape", q, stacked, name=f"{name}.q.stacked")
            k = op("Transpose", k, name=f"{name}.k.columns", perm=[0, 1, 3, 2])
            scores = op("Mul", op("MatMul", q, k, name=f"{name}.products"), scale, name=f"{name}.scores")
            scores = op("Add", op("Reshape", scores, own, name=f"{name}.own"), bias, name=f"{name}.masked")
            shares = op("Reshape", op("Softmax", scores, name=f"{name}.softmax"), shared, name=f"{name}.shares")
            mixed = op("Reshape", op("MatMul", shares, v, name=f"{name}.mixed"), back, name=f"{name}.unstacked")
            mixed = op("Transpose", mixed, name=f"{name}.tokens", perm=[0, 2, 1, 3])
            mixed = op("Reshape", mixed, joined, name=f"{name}.joined")
            return self.product(f"{name}.o_proj", mixed, sizes.width, sizes.width)

        return attend

    def _dims(self, *dims: int) -> list[str]:
        return [self._once(f"dim_{dim}", [dim]) for dim in dims]

    def _lengths(self) -> tuple[str, str]:
        """Tokens of this run, and with those of the past: [1] each."""
        length = self.op("Shape", "input_ids", name="length", start=1, end=2)
        return length, self.op("Shape", "attention_mask", name="total", start=1, end=2)

    def _bias(self, length: str, total: str) -> str:
        """[batch, 1, sequence, total]: 0 where a token may look, else the lowest number."""
        op = self.op
        scalar = self.constant("scalar", [0])
        first, step = self.constant("first", 0), self.constant("step", 1)
        last = op("Squeeze", total, scalar, name="total_tokens")
        past = op("Sub", last, op("Squeeze", length, scalar, name="new_tokens"), name="past_tokens")
        keys = op("Range", first, last, step, name="key_positions")
        queries = op(
            "Unsqueeze", op("Range", past, last, step, name="queries"), self.constant("one_axis", [1]), name="q"
        )
        causal = op("LessOrEqual", keys, queries, name="causal")
        given = op("Cast", "attention_mask", name="given", to=TensorProto.BOOL)
        given = op("Unsqueeze", given, self.constant("middle_axes", [1, 2]), name="given_keys")
        seen = op("And", causal, given, name="seen")
        nothing = self.constant("nothing", 0, NUMPY[self.dtype])
        lowest = self.constant("lowest", np.finfo(NUMPY[self.dtype]).min, NUMPY[self.dtype])
        return op("Where", seen, nothing, lowest, name="bias")

    def _frequencies(self) -> np.ndarray:
        width = self.sizes.head_width
        return self.sizes.rope_base ** -(np.arange(0, width, 2, dtype=np.float32) / width)

    def _rotation(self) -> tuple[str, str]:
        """Cosine and sine, [batch, 1, sequence, head width] each."""
        positions = self.op("Cast", "position_ids", name="positions", to=TensorProto.FLOAT)
        positions = self.op("Unsqueeze", positions, self.constant("table_axes", [1, 3]), name="position_column")
        frequencies = np.tile(self._frequencies(), 2)
        angles = self.op("Mul", positions, self.constant("frequencies", frequencies, np.float32), name="angles")
        made = []
        for kind in ("Cos", "Sin"):
            table = self.op(kind, angles, name=f"{kind.lower()}_table")
            if self.dtype != TensorProto.FLOAT:
                table = self.op("Cast", table, name=f"{kind.lower()}_narrow", to=self.dtype)
            made.append(table)
        return made[0], made[1]

    def _inputs_and_outputs(self) -> None:
        sizes = self.sizes

        def value(name: str, dtype: int, *dims: str | int) -> ValueInfoProto:
            return helper.make_tensor_value_info(name, dtype, dims)

        whole = "total_sequence"
        inputs = [value("input_ids", TensorProto.INT64, "batch", "sequence")]
        inputs.append(value("attention_mask", TensorProto.INT64, "batch", whole))
        if self.form == "plain":
            inputs.append(value("position_ids", TensorProto.INT64, "batch", "sequence"))
        outputs = [value("logits", self.dtype, "batch", "sequence", sizes.vocabulary)]
        for layer in range(sizes.layers):
            for part in ("key", "value"):
                dims = ("batch", sizes.kv_heads, "past_sequence", sizes.head_width)
                inputs.append(value(f"past_key_values.{layer}.{part}", self.dtype, *dims))
                outputs.append(value(f"present.{layer}.{part}", self.dtype, *dims[:2], whole, dims[3]))
        self.graph.input.extend(inputs)
        self.graph.output.extend(outputs)
