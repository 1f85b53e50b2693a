"""The cache of keys and values: past tokens are stored in few bits, those that are just read are used as they are.

Where the cache is a Concat of past and new tokens, the past is dequantized before it and only the new tokens are
quantized behind it (past-only quantization, WKVQuant, arXiv 2402.12065). onnxruntime's GroupQueryAttention stores its
cache in INT8 or INT4 itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnxq.errors import UsageError
from onnxq.formats import get_format
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.channels import Range, channel_grid, smoothing
from onnxq.model.attention import grouped_attentions
from onnxq.model.load import Model
from onnxq.model.operators import domain_of
from onnxq.passes.edit import Editor
from onnxq.recipes import CachePart, CacheSpec
from onnxq.runtime.cache import Carried, carried
from onnxq.statistics.cache import collected, load_statistics
from onnxq.statistics.calibration import Calibration, inputs_of_graph
from onnxq.statistics.reductions import Kind
from onnxq.statistics.requests import Request
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import HEADS

# Where GroupQueryAttention (com.microsoft, version 1) reads and writes keys and values, and their scales.
_PAST, _SCALE = {"key": 3, "value": 4}, {"key": 12, "value": 13}
_GROUPED_BITS = {"int8": 8, "int4": 4}
_KINDS: tuple[Kind, ...] = ("channel_min", "channel_max", "channel_sum", "channel_square_sum")


@dataclass(frozen=True)
class CacheTensor:
    """What happens to one tensor of the cache.

    Attributes:
        carried: Its input and output.
        role: Keys or values.
        spec: How it is quantized; None where it is not.
        reason: Why it is not quantized; None where it is.
        new: The value with the new tokens, or of a GroupQueryAttention with all: what calibration looks at.
        node: The Concat, or the GroupQueryAttention.
    """

    carried: Carried
    role: Literal["key", "value"]
    spec: CachePart | None
    reason: str | None
    new: ir.Value | None
    node: ir.Node | None

    @property
    def heads(self) -> int:
        """Heads of keys and values."""
        return self.carried.shape(1, 0)[1]

    @property
    def size(self) -> int:
        """Channels of a head."""
        return self.carried.shape(1, 0)[3]

    @property
    def is_grouped(self) -> bool:
        """Whether onnxruntime's attention does it."""
        return self.node is not None and self.node.op_type == "GroupQueryAttention"

    @property
    def token_bytes(self) -> tuple[int, int]:
        """Bytes that a token takes, before and after."""
        elements, itemsize = self.heads * self.size, self.carried.past.dtype.itemsize
        if self.spec is None:
            return elements * itemsize, elements * itemsize
        scales = 0 if self.spec.granularity == "channel" else 2 * self.heads
        return elements * itemsize, elements * get_format(self.spec.format).bits // 8 + scales


@dataclass(frozen=True)
class CachePlan:
    """What happens to each tensor of the cache."""

    tensors: tuple[CacheTensor, ...] = ()

    @property
    def quantized(self) -> tuple[CacheTensor, ...]:
        """Tensors that are quantized."""
        return tuple(each for each in self.tensors if each.spec is not None)

    def sentences(self) -> Iterator[str]:
        """For the report: what is quantized and what a token takes, and why other tensors stay."""
        before, after = (sum(each.token_bytes[at] for each in self.tensors) for at in (0, 1))
        kinds = {f"{each.role}s {each.spec.describe()}" for each in self.tensors if each.spec}
        if kinds:
            yield f"cache: {', '.join(sorted(kinds))}; {after:,} bytes a token, {before:,} before"
        for each in self.tensors:
            if each.reason:
                yield f"cache: {each.carried.past.name} stays as it is: {each.reason}"


def plan_cache(graph: ir.Graph, spec: CacheSpec | None) -> CachePlan:
    """Decide about each tensor of the cache.

    Raises:
        UsageError: The model has no cache.
        DataError: Its cache is not one that a generator could carry.
    """
    if spec is None:
        return CachePlan()
    tensors = carried(inputs_of_graph(graph), [value.name or "" for value in graph.outputs])
    if not tensors:
        raise UsageError(
            "the recipe quantizes the cache, and the model has none (past_key_values.N.key in, present out)"
        )
    return CachePlan(tuple(_decide(graph, each, spec) for each in tensors))


def _decide(graph: ir.Graph, tensor: Carried, spec: CacheSpec) -> CacheTensor:
    role: Literal["key", "value"] = "key" if "key" in tensor.past.name.rsplit(".", 1)[-1] else "value"
    part = spec.key if role == "key" else spec.value
    past = next(value for value in graph.inputs if value.name == tensor.past.name)
    present = next(value for value in graph.outputs if value.name == tensor.present)
    for attention in grouped_attentions(graph):
        if attention.inputs[_PAST[role]] is past:
            return CacheTensor(tensor, role, *_of_attention(part, spec), present, attention)
    node = present.producer()
    reason = _obstacle(node, past, tensor)
    new = None if reason or node is None else node.inputs[1]
    return CacheTensor(tensor, role, None if reason else part, reason, new, node)


def _of_attention(part: CachePart, spec: CacheSpec) -> tuple[CachePart | None, str | None]:
    """GroupQueryAttention has static scales of channels, and keys and values of the same width."""
    if part.format not in _GROUPED_BITS or spec.key.format != spec.value.format:
        return None, "GroupQueryAttention stores keys and values in INT8 or both in INT4"
    return part.model_copy(update={"granularity": "channel"}), None


def _obstacle(node: ir.Node | None, past: ir.Value, tensor: Carried) -> str | None:
    if (
        node is None
        or domain_of(node) != ""
        or node.op_type != "Concat"
        or node.attributes["axis"].as_int() not in (2, -2)
    ):
        return "the present is no Concat of the past and the new tokens"
    if len(node.inputs) != 2 or node.inputs[0] is not past:
        return "the present is no Concat of the past and the new tokens"
    for reader, _ in past.uses():
        if reader is not node and (domain_of(reader), reader.op_type) != ("", "Shape"):
            return f"its past is also read by {reader.op_type} '{reader.name}'"
    size = tensor.shape(1, 0)[3]
    if size % 8:
        return f"a head has {size} channels: packing wants a multiple of 8"
    return None


def cache_statistics(
    model: Model, plan: CachePlan, calibration: Calibration | None, file: object = None
) -> Statistics | None:
    """What scales of channels are made from; None where none are.

    Raises:
        UsageError: Scales come from data, and there is none.
        DataError: Data or file do not fit the model.
    """
    wanted = cache_requests(plan)
    if not wanted:
        return None
    if file is not None:
        return load_statistics(str(file), model, wanted)
    if calibration is None:
        raise UsageError(
            "scales of the cache's channels come from data: give calibration data, or set granularity: token"
        )
    return collected(model, wanted, calibration)


def cache_requests(plan: CachePlan) -> list[Request]:
    """Range and moments of each channel, where its scale comes from them."""
    return [
        Request(each.new.name, each.heads * each.size, _KINDS, HEADS)
        for each in plan.quantized
        if each.spec is not None and each.spec.needs_data and each.new is not None and each.new.name
    ]


def quantize_cache(model: ir.Model, plan: CachePlan, statistics: Statistics | None) -> None:
    """Carry out a plan; afterwards the model takes and gives codes, and scales of tokens where they have any."""
    editor = Editor(model)
    for tensor in plan.quantized:
        seen = _range(tensor, statistics) if statistics is not None and tensor.spec and tensor.spec.needs_data else None
        if tensor.is_grouped:
            _in_attention(model.graph, editor, tensor, seen)
        else:
            _Rewrite(model.graph, editor, tensor, seen).run()


def _range(tensor: CacheTensor, statistics: Statistics) -> Range:
    name = tensor.new.name or "" if tensor.new is not None else ""
    rows = statistics.rows(name, HEADS)
    low, high, total, squares = (
        statistics.get(name, kind, HEADS).reshape(tensor.heads, tensor.size) for kind in _KINDS
    )
    mean = total / rows
    return Range(low, high, mean, np.sqrt(np.maximum(squares / rows - mean**2, 0)))


def _in_attention(graph: ir.Graph, editor: Editor, tensor: CacheTensor, seen: Range | None) -> None:
    node, spec = tensor.node, tensor.spec
    if node is None or spec is None or seen is None:
        raise ValueError(tensor.carried.past.name)
    bits = _GROUPED_BITS[spec.format]
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", bits)
    name = f"{tensor.role[0]}_quant_type"
    node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
    if len(node.inputs) <= _SCALE["value"]:
        node.resize_inputs(_SCALE["value"] + 1)
    _, scale = channel_grid(seen, get_format(spec.format), centred=False)
    past = node.inputs[_PAST[tensor.role]]
    constant = _constant(editor, graph, f"{tensor.carried.past.name}.scale", scale.reshape(-1).astype(np.float32))
    node.replace_input_with(_SCALE[tensor.role], constant)
    dtype = ir.DataType.INT8 if bits == 8 else ir.DataType.UINT8
    for value in (past, graph.outputs[_index(graph, tensor)]):
        if value is not None:
            _retype(value, dtype, tensor.size * bits // 8)


def _index(graph: ir.Graph, tensor: CacheTensor) -> int:
    return next(at for at, value in enumerate(graph.outputs) if value.name == tensor.carried.present)


def _retype(value: ir.Value, dtype: ir.DataType, width: int) -> None:
    value.type = ir.TensorType(dtype)
    if value.shape is not None:
        value.shape = ir.Shape([*value.shape[:3], width])


def _constant(editor: Editor, graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    return editor.constant(ir.tensor(array, name=editor.fresh(name)), graph.inputs[0])


class _Rewrite:
    """One Concat of past and new tokens, which becomes two: of floats for the attention, and of codes for the cache."""

    def __init__(self, graph: ir.Graph, editor: Editor, tensor: CacheTensor, seen: Range | None) -> None:
        if tensor.spec is None or tensor.node is None or tensor.new is None or tensor.node.inputs[0] is None:
            raise ValueError(tensor.carried.past.name)
        self.graph, self.editor, self.tensor, self.seen = graph, editor, tensor, seen
        self.spec, self.concat, self.new, self.past = tensor.spec, tensor.node, tensor.new, tensor.node.inputs[0]
        self.kind = get_format(tensor.spec.format)
        self.suffix, self.float_type = operator_suffix(self.kind), tensor.carried.past.dtype
        self.name = tensor.carried.past.name

    def run(self) -> None:
        """Edit the graph."""
        floats = ir.Value(name=f"{self.name}.float", type=self.past.type, shape=self.past.shape)
        dtype = int(ir.DataType.from_numpy(self.float_type))
        _retype(self.past, ir.DataType.UINT8, self.tensor.size * self.kind.bits // 8)
        offset, factor, scale = self._static()
        new = self.new
        if offset is not None:
            new = self._node(("", "Sub"), [new, offset], f"{self.name}.new_centred")
        if factor is not None:
            new = self._node(("", "Div"), [new, factor], f"{self.name}.new_smoothed")
        past_scale = scale
        if scale is None:
            scale = self._node((DOMAIN, f"CacheScale{self.suffix}"), [new], f"{self.name}.new_scale")
            past_scale = self._carry_scale(scale)
        codes = self._node((DOMAIN, f"CacheQuantize{self.suffix}"), [new, scale], f"{self.name}.new_codes")
        self._carry(self.past, codes, self.tensor.carried.present)
        past = self.editor.before(
            self.concat, (DOMAIN, f"CacheDequantize{self.suffix}"), [self.past, past_scale], {"dtype": dtype}, floats
        )
        if factor is not None:
            past = self._node(("", "Mul"), [past, factor], f"{self.name}.rough")
        if offset is not None:
            past = self._node(("", "Add"), [past, offset], f"{self.name}.placed")
        self.concat.replace_input_with(0, past)

    def _static(self) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
        """Offset, factor and scale of channels, [1, heads, 1, size]; None each where there is none."""
        if self.seen is None:
            return None, None, None

        def constant(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> ir.Value:
            shaped = array.astype(dtype)[None, :, None, :]
            return _constant(self.editor, self.graph, f"{self.name}.{name}", shaped)

        if self.spec.granularity == "smoothed":
            offset, factor = smoothing(self.seen)
            return constant("offset", offset, self.float_type), constant("factor", factor, self.float_type), None
        offset, scale = channel_grid(self.seen, self.kind)
        return constant("offset", offset, self.float_type), None, constant("scale", scale, np.dtype(np.float32))

    def _carry_scale(self, new: ir.Value) -> ir.Value:
        """Scales of tokens as one more tensor of the cache; the past ones."""
        dims = list(self.past.shape) if self.past.shape is not None else [None, self.tensor.heads, None, 1]
        past = ir.Value(
            name=f"{self.name}_scale", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([*dims[:3], 1])
        )
        self.graph.inputs.append(past)
        self._carry(past, new, f"{self.tensor.carried.present}_scale")
        return past

    def _carry(self, past: ir.Value, new: ir.Value, present: str) -> None:
        """Let the model give past and new under a name, in the place of an output that had it."""
        replaced = next((value for value in self.graph.outputs if value.name == present), None)
        shape = None
        if replaced is not None:
            replaced.name = self.editor.fresh(f"{self.name}.all")
            shape = replaced.shape
        elif (whole := self.concat.outputs[0].shape) is not None:
            shape = whole
        dims = [*shape[:3], past.shape[3]] if shape is not None and past.shape is not None else None
        result = self._node(("", "Concat"), [past, new], f"{present}.made", {"axis": 2})
        result.name, result.type = present, past.type
        result.shape = None if dims is None else ir.Shape(dims)
        if replaced is None:
            self.graph.outputs.append(result)
        else:
            at = next(at for at, value in enumerate(self.graph.outputs) if value is replaced)
            self.graph.outputs[at] = result

    def _node(
        self,
        operator: tuple[str, str],
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: dict[str, int | list[int]] | None = None,
    ) -> ir.Value:
        return self.editor.before(self.concat, operator, inputs, attributes or {}, ir.Value(name=name))
