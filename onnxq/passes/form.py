"""The form in which a quantized weight leaves: how its scales lie, which versions it needs, how many bytes it takes."""

import math
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.formats import LEARNED_FORMATS, Format, Integer, get_format, get_scale_type, packed_bytes
from onnxq.formats.scales import ScaleType
from onnxq.formats.sparse import ENTRY_BYTES, most_entries
from onnxq.formats.tiled import tiled_columns, tiled_rows
from onnxq.methods import outliers
from onnxq.methods.grid import GridSpec, largest_of
from onnxq.methods.solve.pb_llm import salient_count
from onnxq.model.operators import Layout, is_op
from onnxq.model.sites import Weight
from onnxq.passes.fusion import will_fuse, will_tile
from onnxq.passes.integers import reads_integers
from onnxq.passes.target import (
    FUNCTION_IR_VERSION,
    FUNCTION_OPSET,
    LOSSLESS_INT8,
    Target,
    is_standard_form,
    needed_versions,
)
from onnxq.recipes import QuantSpec

_AUTO_SCALES = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class Grouping:
    """A spec applied to one shape.

    Attributes:
        matrix: [A, K, C], K the axis summed over: how the solver sees the weight.
        block: Weights along K that share a scale; None for one scale in all.
        scale_type: What a scale is stored as.
    """

    matrix: tuple[int, int, int]
    block: int | None
    scale_type: ScaleType

    @property
    def scales(self) -> int:
        """Number of scales."""
        a, k, c = self.matrix
        return 1 if self.block is None else a * math.ceil(k / self.block) * c


def grouping(weight: Weight, spec: QuantSpec) -> Grouping:
    """How the scales of a weight lie; the weight must have no obstacle."""
    layout, shape = weight.layout, weight.shape
    if layout is None:
        raise ValueError(weight.name)
    if layout.flatten:
        matrix = (shape[0], math.prod(shape[1:]), 1)
    else:
        at = layout.reduction
        matrix = (math.prod(shape[:at]), shape[at], math.prod(shape[at + 1 :]))
    block = {"tensor": None, "channel": matrix[1], "group": spec.group_size}[spec.granularity]
    return Grouping(matrix, block, get_scale_type(_AUTO_SCALES[weight.dtype] if spec.scale == "auto" else spec.scale))


def grid_spec(weight: Weight, spec: QuantSpec) -> GridSpec:
    """What a solver may round a weight to; the weight must have no obstacle."""
    group, formats = grouping(weight, spec), [get_format(name) for name in spec.format]
    largest = largest_of(weight.dtype.numpy())
    return GridSpec(formats, group.block, group.scale_type, spec.symmetric, largest, spec.salient or 0)


@dataclass(frozen=True)
class Table:
    """A matrix whose rows are looked up, as those see it who do that, and as the products do that share it.

    Attributes:
        rows: The weight with the sites that look rows up.
        columns: The weight with the other sites, transposed: what products read, and in tiles lookups as well. None
            where nobody does.
        in_tiles: Both read the same: tiles for GPU kernels, of which a row is a column. Otherwise lookups read packed
            rows, and products have a weight of their own.
    """

    rows: Weight
    columns: Weight | None
    in_tiles: bool


def as_table(weight: Weight, spec: QuantSpec, target: Target) -> Table | None:
    """The table that a weight leaves as: packed rows for lookups, and beside them what products read of it.

    None where a weight is no such thing, or would not get smaller: then its readers share one dequantized weight. On a
    GPU those share one that have no tiles: functions that run in every step cannot be captured as a CUDA graph.
    """
    if target == "standard" or weight.obstacle or spec.outliers or spec.salient or len(weight.shape) != 2:
        return None
    if any(name in LEARNED_FORMATS for name in spec.format):
        return None
    lookups = tuple(site for site in weight.sites if is_op(site.node, "Gather"))
    others = tuple(site for site in weight.sites if site not in lookups)
    if not lookups:
        return None
    # A table may be stored in another float type; products see it transposed.
    casts = lookups[0].steps or ()
    turned = (*casts, ("Transpose", (1, 0)))
    alike = all(site.steps == casts for site in lookups) and all(site.steps == turned for site in others)
    if not alike or any(operator != "Cast" for operator, _ in casts):
        return None
    rows = replace(weight, sites=lookups, steps=casts, layout=lookups[0].layout)
    columns = replace(weight, sites=others, steps=turned, layout=Layout(reduction=0, channel=1))
    if any(site.layout != columns.layout for site in others):
        return None
    if target == "ort-cuda":
        tiled = all(leaves_tiled(columns, get_format(name), spec) for name in spec.format)
        return Table(rows, columns, in_tiles=True) if tiled else None
    if weight.tensor.shape.numpy()[1] % 8:
        return None
    table = Table(rows, columns if others else None, in_tiles=False)
    return table if not others or _table_bytes(table, spec, target) < weight.size_bytes else None


def needs(weight: Weight, spec: QuantSpec, target: Target) -> list[tuple[int, int]]:
    """Opset and IR version that each candidate format of a spec needs."""
    if table := as_table(weight, spec, target):
        of_columns = [] if table.columns is None else needs(table.columns, spec, target)
        return [(FUNCTION_OPSET, FUNCTION_IR_VERSION), *of_columns]
    flat = weight.layout is not None and weight.layout.flatten
    blocked = spec.granularity == "group" or (spec.granularity == "channel" and len(weight.shape) != 2 and not flat)
    kinds = [get_format(name) for name in spec.format]
    return [
        needed_versions(
            kind,
            weight.dtype,
            target,
            standard=leaves_standard(weight, kind, spec, target),
            blocked=blocked,
        )
        for kind in kinds
    ]


def leaves_standard(weight: Weight, kind: Format, spec: QuantSpec, target: Target) -> bool:
    """Whether a weight leaves under a standard `DequantizeLinear`; if not, it leaves under a function of onnxq's."""
    group = grouping(weight, spec)
    if not is_standard_form(kind, group.scale_type, weight.dtype, target):
        return False
    if target == "ort-cuda" and leaves_tiled(weight, kind, spec):
        return False
    if target == "standard":
        # Constant, which a function body needs, does not know the 6-bit types (ONNX 1.23, opset 28).
        return not (weight.in_function and kind.bits == 6)
    # A DequantizeLinear that onnxruntime does not fuse into a kernel expands its weight again in every run; a function
    # of onnxq's is folded to float when the model is loaded, and runs as fast as the float model did.
    if not isinstance(kind, Integer) or spec.outliers:
        return False
    return runs_as_integers(weight, kind, spec) or will_fuse(weight, group.block, kind.bits)


def leaves_tiled(weight: Weight, kind: Format, spec: QuantSpec) -> bool:
    """Whether a weight leaves in the layout of onnxq's GPU kernels, where the target has them.

    Where most of its units would be filled up, they can take more than floats do: such a weight stays dense.
    """
    takes = not spec.outliers and will_tile(weight, kind, grouping(weight, spec).block)
    return takes and _bytes(weight, spec, kind.bits, tiled=True) < weight.size_bytes


def runs_as_integers(weight: Weight, kind: Format, spec: QuantSpec) -> bool:
    """Whether a weight and the 8-bit activations that it meets are multiplied as integers."""
    if spec.outliers:
        return False
    group = grouping(weight, spec)
    whole = group.block in (None, group.matrix[1]) and weight.dtype == ir.DataType.FLOAT
    # Zero points of convolution weights must be zero; those of others are left to MatMulNBits.
    return whole and isinstance(kind, Integer) and kind.bits == 8 and kind.signed and reads_integers(weight)


def planned_bytes(weight: Weight, spec: QuantSpec, target: Target) -> int:
    """Bytes of codes, scales and zero points, with the widest of the candidate formats.

    A weight that becomes int8 without loss takes some more where the kernel's blocks are filled up.
    """
    if table := as_table(weight, spec, target):
        return _table_bytes(table, spec, target)
    kinds = [get_format(name) for name in spec.format]
    int8 = target == "ort-int8" and weight.dtype != ir.DataType.BFLOAT16 and not spec.outliers
    bits = max(8 if int8 and kind.onnx_type in LOSSLESS_INT8 else kind.bits for kind in kinds)
    tiled = target == "ort-cuda" and any(leaves_tiled(weight, kind, spec) for kind in kinds)
    return _bytes(weight, spec, bits, tiled=tiled)


def _table_bytes(table: Table, spec: QuantSpec, target: Target) -> int:
    """Of what lookups and products read."""
    bits = max(get_format(name).bits for name in spec.format)
    of_rows = 0 if table.in_tiles else _bytes(table.rows, spec, bits, rows=True)
    return of_rows + (0 if table.columns is None else planned_bytes(table.columns, spec, target))


def _bytes(weight: Weight, spec: QuantSpec, bits: int, *, tiled: bool = False, rows: bool = False) -> int:
    """Of codes with so many bits each, and all that lies beside them; in tiles, or in the rows of a table."""
    group = grouping(weight, spec)
    # Scales of one byte have one float32 for the tensor beside them.
    itemsize = group.scale_type.dtype.itemsize
    size, count = weight.size, group.scales
    if tiled:
        # There each column has a scale of its own; rows and columns fill up units.
        _, K, N = group.matrix
        size, count = (each * tiled_columns(N) for each in (tiled_rows(K), max(1, count // N)))
    # In both forms each zero point takes a byte.
    zeros = 0 if spec.symmetric else count if tiled or rows else packed_bytes(count, bits)
    if spec.salient:
        # Signs and a mask, integers, means beside scales, and a scale of the integers for each column.
        few, columns = salient_count(weight.size, spec.salient), group.matrix[0] * group.matrix[2]
        signs = packed_bytes(weight.size - few, 1) + packed_bytes(weight.size, 1)
        return signs + few + (2 * count + columns) * itemsize
    beside = math.ceil(spec.low_rank * sum(weight.shape) * weight.dtype.itemsize) if spec.low_rank else 0
    if any(name in LEARNED_FORMATS for name in spec.format):
        beside += 4 * 2**bits
    if spec.outliers:
        beside += ENTRY_BYTES * most_entries(outliers.count(weight.size, spec.outliers), weight.size)
    return packed_bytes(size, bits) + count * itemsize + (4 if itemsize == 1 else 0) + zeros + beside
