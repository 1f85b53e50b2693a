"""Round activations: one pair of Q and DQ, or a function in its place, for each value and all that read it rounded."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.formats import get_format, get_scale_type, pack
from onnxq.functions import DOMAIN, operator_suffix
from onnxq.methods.ranges import Method, find_range, scale_of
from onnxq.passes.edit import Editor
from onnxq.passes.rounding.plan import ActivationSite
from onnxq.passes.sink import Sink
from onnxq.passes.target import has_pair
from onnxq.statistics.statistics import Statistics

_SCALE_TYPES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}


def quantize_activations(model: ir.Model, sites: Sequence[ActivationSite], statistics: Statistics, sink: Sink) -> None:
    """Round the values of all sites.

    Args:
        model: Edited in place; its versions are not raised.
        sites: From `plan_activations` on this model.
        statistics: What the sites request.
        sink: Takes scales and zero points.
    """
    editor = Editor(model)
    for site in sites:
        place = _Place(editor, site, sink)
        if not site.spec.is_dynamic:
            rounded = place.static(*_scale(site, statistics))
        else:
            rounded = place.by_rows() if site.spec.of_rows else place.by_tensor()
        for node, index in site.uses:
            node.replace_input_with(index, rounded)


def _scale(site: ActivationSite, statistics: Statistics) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of a static activation, float64, [] or [channels]."""
    spec, kind, name = site.spec, get_format(site.spec.format), str(site.value.name)
    if spec.granularity == "channel":
        low, high = (statistics.get(name, what, site.view) for what in ("channel_min", "channel_max"))
    elif spec.ranging == "absmax":
        low, high = statistics.get(name, "min"), statistics.get(name, "max")
    else:
        method: Method = spec.ranging if spec.ranging != "dynamic" else "absmax"
        counts, edges = statistics.histogram(name)
        found = find_range(method, counts, edges, kind, symmetric=spec.symmetric, percentile=spec.percentile)
        low, high = (np.asarray(each) for each in found)
    return scale_of(low, high, kind, symmetric=spec.symmetric)


class _Place:
    """Adds the nodes of one site."""

    def __init__(self, editor: Editor, site: ActivationSite, sink: Sink) -> None:
        self._editor = editor
        self._site = site
        self._sink = sink
        self._kind = get_format(site.spec.format)
        self._suffix = operator_suffix(self._kind)

    def static(self, scale: np.ndarray, zero_point: np.ndarray) -> ir.Value:
        """With constant scales."""
        pair, site = has_pair(self._site.spec), self._site
        stored = get_scale_type(_SCALE_TYPES[site.dtype] if pair else "fp32").store(scale)
        if not pair:
            scales = self._broadcast(self._constant("scale", ir.DataType.FLOAT, stored))
            return self._round(site.value, [scales])
        codes_type = ir.DataType[str(self._kind.onnx_type)]
        codes = pack(self._kind.encode(zero_point.astype(np.float32)), self._kind.bits)
        constants = [
            self._constant("scale", site.dtype, stored),
            self._constant("zero_point", codes_type, codes, shape=scale.shape),
        ]
        attributes = {"axis": site.axis} if scale.ndim else {}
        quantized = self._add(("", "QuantizeLinear"), [site.value, *constants], attributes, [("quantized", codes_type)])
        return self._dequantize([quantized[0], *constants], attributes)

    def by_tensor(self) -> ir.Value:
        """With one scale and zero point that the graph measures."""
        types = [("quantized", ir.DataType.UINT8), ("scale", ir.DataType.FLOAT), ("zero_point", ir.DataType.UINT8)]
        return self._dequantize(self._add(("", "DynamicQuantizeLinear"), [self._site.value], {}, types), {})

    def by_rows(self) -> ir.Value:
        """With scales that the graph measures for each row, or for each group, which is a row for as long."""
        value = self._site.value
        if (size := self._site.spec.group_size) is None:
            return self._by_rows_of(value, "rounded")
        dims = self._constant("group", ir.DataType.INT64, np.array([-1, size], np.int64))
        groups = ir.Value(name=f"{value.name}_groups", type=value.type, shape=ir.Shape([None, size]))
        (groups,) = self._editor.behind(value, ("", "Reshape"), [value, dims], {}, [groups])
        rounded = self._by_rows_of(groups, "rounded_groups")
        (shape,) = self._add(("", "Shape"), [value], {}, [("shape", ir.DataType.INT64)])
        return self._add(("", "Reshape"), [rounded, shape], {}, [("rounded", self._site.dtype)], behind=rounded)[0]

    def _by_rows_of(self, value: ir.Value, name: str) -> ir.Value:
        spec, types = self._site.spec, [("scale", ir.DataType.FLOAT)]
        family = "RowScale" if spec.scale == "auto" else "RowBinade"
        if not spec.symmetric:
            family, types = "RowRange", [*types, ("zero_point", ir.DataType.FLOAT)]
        scale, *zero_point = self._add((DOMAIN, family + self._suffix), [value], {}, types, behind=value)
        if spec.clip_ratio != 1:
            # Both ends of the range move towards zero, which stays where it is.
            ratio = self._constant("clip_ratio", ir.DataType.FLOAT, np.float32(spec.clip_ratio))
            clipped = [("clipped_scale", ir.DataType.FLOAT)]
            (scale,) = self._add(("", "Mul"), [scale, ratio], {}, clipped, behind=scale)
        return self._round(value, [scale, *zero_point], name)

    def _round(self, value: ir.Value, scales: Sequence[ir.Value], name: str = "rounded") -> ir.Value:
        """The function in place of a pair."""
        function = f"QuantizeDequantize{self._suffix}" + ("" if self._site.spec.symmetric else "Asymmetric")
        attributes, result = {"dtype": int(self._site.dtype)}, [(name, self._site.dtype)]
        return self._add((DOMAIN, function), [value, *scales], attributes, result, behind=scales[0])[0]

    def _broadcast(self, scale: ir.Value) -> ir.Value:
        """One scale in all, or channels with the axes behind them."""
        if scale.shape == () or not self._site.trailing:
            return scale
        axes = np.arange(1, 1 + self._site.trailing, dtype=np.int64)
        inputs = [scale, self._constant("axes", ir.DataType.INT64, axes)]
        return self._add(("", "Unsqueeze"), inputs, {}, [("scale", ir.DataType.FLOAT)])[0]

    def _dequantize(self, inputs: Sequence[ir.Value], attributes: Mapping[str, int]) -> ir.Value:
        result = [("rounded", self._site.dtype)]
        return self._add(("", "DequantizeLinear"), inputs, attributes, result, behind=inputs[0])[0]

    def _add(
        self,
        operator: tuple[str, str],
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int],
        outputs: Sequence[tuple[str, ir.DataType]],
        *,
        behind: ir.Value | None = None,
    ) -> Sequence[ir.Value]:
        """A node behind a value, by default that of the site; what has its type has its shape too."""
        value = self._site.value
        results = [
            ir.Value(
                name=f"{value.name}_{name}",
                type=ir.TensorType(dtype),
                shape=value.shape if name in ("quantized", "rounded") else None,
            )
            for name, dtype in outputs
        ]
        # A constant is made nowhere.
        after = value if behind is None or behind.producer() is None else behind
        return self._editor.behind(after, operator, inputs, attributes, results)

    def _constant(
        self, what: str, dtype: ir.DataType, data: np.ndarray | np.float32, *, shape: tuple[int, ...] | None = None
    ) -> ir.Value:
        name = self._editor.fresh(f"{self._site.value.name}_{what}")
        chunk = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        tensor = self._sink.append(name, dtype, data.shape if shape is None else shape, [chunk])
        return self._editor.constant(tensor, self._site.value)
