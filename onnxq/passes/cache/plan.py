"""Which tensors of the cache are quantized and how, and what has to be known of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from onnxq.errors import UsageError, with_others
from onnxq.formats import get_format
from onnxq.methods.channels import is_fitted
from onnxq.model.attention import grouped_attentions
from onnxq.model.load import Model
from onnxq.model.operators import is_op
from onnxq.recipes import CachePart, CacheSpec
from onnxq.runtime.cache import Carried, carried
from onnxq.statistics.cache import collected, load_statistics
from onnxq.statistics.calibration import Calibration, inputs_of_graph
from onnxq.statistics.reductions import Kind
from onnxq.statistics.requests import Request
from onnxq.statistics.statistics import Statistics
from onnxq.statistics.views import HEADS

# Where GroupQueryAttention (com.microsoft, version 1) reads past keys and values, and the bits that it stores.
PAST = {"key": 3, "value": 4}
GROUPED_BITS = {"int8": 8, "int4": 4}


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
    def kinds(self) -> tuple[Kind, ...]:
        """What has to be known of its channels."""
        if self.spec is not None and self.spec.granularity == "channel" and is_fitted(get_format(self.spec.format)):
            return "channel_min", "channel_max", "channel_histogram"
        return "channel_min", "channel_max"

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
        """For the report: what is quantized, and what a token takes."""
        before, after = (sum(each.token_bytes[at] for each in self.tensors) for at in (0, 1))
        kinds = {f"{each.role}s {each.spec.describe()}" for each in self.tensors if each.spec}
        if kinds:
            yield f"cache: {', '.join(sorted(kinds))}; {after:,} bytes a token, {before:,} before"

    def warnings(self) -> Iterator[str]:
        """Why other tensors stay."""
        for reason in dict.fromkeys(each.reason for each in self.tensors if each.reason):
            first, *others = (each.carried.past.name for each in self.tensors if each.reason == reason)
            stay = "stay as they are" if others else "stays as it is"
            yield f"cache: {with_others(first, len(others))} {stay}: {reason}"


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
            "the recipe quantizes the cache, and the model has none (past_key_values.N.key in, present out): export it "
            "with one (onnxq export --task text-generation-with-past), or leave 'cache' out of the recipe"
        )
    return CachePlan(tuple(_decide(graph, each, spec) for each in tensors))


def _decide(graph: ir.Graph, tensor: Carried, spec: CacheSpec) -> CacheTensor:
    role: Literal["key", "value"] = "key" if "key" in tensor.past.name.rsplit(".", 1)[-1] else "value"
    part = spec.key if role == "key" else spec.value
    past = next(value for value in graph.inputs if value.name == tensor.past.name)
    present = next(value for value in graph.outputs if value.name == tensor.present)
    for attention in grouped_attentions(graph):
        if attention.inputs[PAST[role]] is past:
            return CacheTensor(tensor, role, *_of_attention(part, spec), present, attention)
    node = present.producer()
    reason = _obstacle(node, past, tensor)
    new = None if reason or node is None else node.inputs[1]
    return CacheTensor(tensor, role, None if reason else part, reason, new, node)


def _of_attention(part: CachePart, spec: CacheSpec) -> tuple[CachePart | None, str | None]:
    """GroupQueryAttention has static scales of channels, and keys and values of the same width."""
    if part.format not in GROUPED_BITS or spec.key.format != spec.value.format:
        return None, "GroupQueryAttention stores keys and values in INT8 or both in INT4"
    return part.model_copy(update={"granularity": "channel"}), None


def _obstacle(node: ir.Node | None, past: ir.Value, tensor: Carried) -> str | None:
    if is_op(node, "If"):
        return (
            "an If chooses the present: in a merged decoder one graph reads prompts and another the tokens after them; "
            "export it as one graph (onnxq export)"
        )
    joins = is_op(node, "Concat") and node.attributes["axis"].as_int() in (2, -2)
    if node is None or not joins or len(node.inputs) != 2 or node.inputs[0] is not past:
        return "the present is no Concat of the past and the new tokens"
    for reader, _ in past.uses():
        if reader is not node and not is_op(reader, "Shape"):
            return f"its past is also read by {reader.op_type} '{reader.name}'"
    size = tensor.shape(1, 0)[3]
    if size % 8:
        return f"a head has {size} channels: packing wants a multiple of 8"
    return None


def cache_statistics(
    model: Model, plan: CachePlan, calibration: Calibration | None, file: str | Path | None = None
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
        return load_statistics(file, model, wanted)
    if calibration is None:
        raise UsageError(
            "scales of the cache's channels come from data: give calibration data, or set granularity: token"
        )
    return collected(model, wanted, calibration)


def cache_requests(plan: CachePlan) -> list[Request]:
    """What each channel's scale comes from."""
    return [
        Request(each.new.name, each.heads * each.size, each.kinds, HEADS)
        for each in plan.quantized
        if each.spec is not None and each.spec.needs_data and each.new is not None and each.new.name
    ]
