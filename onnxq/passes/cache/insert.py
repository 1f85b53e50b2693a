"""The cache of keys and values: past tokens are stored in few bits, those that are just read are used as they are.

Where the cache is a Concat of past and new tokens, the past is dequantized before it and only the new tokens are
quantized behind it (past-only quantization, WKVQuant, arXiv 2402.12065). onnxruntime's GroupQueryAttention stores its
cache in INT8 or INT4 itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.formats import get_format
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.channels import Range, channel_grid, smoothing
from onnxq.passes.cache.plan import GROUPED_BITS, PAST, CachePlan, CacheTensor
from onnxq.passes.edit import Attributes, Editor
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import HEADS

# Where GroupQueryAttention (com.microsoft, version 1) reads the scales of keys and values.
_SCALE = {"key": 12, "value": 13}


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
    of_heads = (statistics.get(name, kind, HEADS) for kind in tensor.kinds)
    return Range(*(each.reshape(tensor.heads, tensor.size, *each.shape[1:]) for each in of_heads))


def _in_attention(graph: ir.Graph, editor: Editor, tensor: CacheTensor, seen: Range | None) -> None:
    node, spec = tensor.node, tensor.spec
    if node is None or spec is None or seen is None:
        raise ValueError(tensor.carried.past.name)
    bits = GROUPED_BITS[spec.format]
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", bits)
    name = f"{tensor.role[0]}_quant_type"
    node.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
    if len(node.inputs) <= _SCALE["value"]:
        node.resize_inputs(_SCALE["value"] + 1)
    _, scale = channel_grid(seen, get_format(spec.format), centred=False)
    past = node.inputs[PAST[tensor.role]]
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
        attributes: Attributes | None = None,
    ) -> ir.Value:
        return self.editor.before(self.concat, operator, inputs, attributes or {}, ir.Value(name=name))
