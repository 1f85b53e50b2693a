"""How the weights of a model run in a session on the CPU, told from the graph without running it."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxq.errors import number_of
from onnxq.functions import DOMAIN
from onnxq.model.constants import FLOAT_TYPES, fixed_tensor, trace
from onnxq.model.load import Model, load
from onnxq.model.operators import MICROSOFT, Operand, is_op, weight_operands
from onnxq.passes.fusion import fused_bits
from onnxq.passes.integers import integer_product
from onnxq.runtime.cuda import device
from onnxq.runtime.native import native_library, rounds_activations
from onnxq.runtime.session import INT8_LEVEL

# The level at which onnxruntime runs a matmul it fused itself, unless the session says otherwise (seen in 1.31.1).
DEFAULT_ACCURACY_LEVEL = 4
_PRODUCTS = ("MatMul", "Linear", "SwiGLU")
# Operators that find the scales of rows, for others that round.
_OF_ROWS = ("RowScale", "RowBinade", "RowRange")


@dataclass(frozen=True)
class FusedMatMuls:
    """Matmuls that run in one low-bit kernel: `count` of them, at `bits` and onnxruntime's accuracy level."""

    bits: int
    accuracy_level: int
    count: int


@dataclass(frozen=True)
class Execution:
    """How weights run: how many nodes take each way.

    Attributes:
        fused: `MatMulNBits`, written in the model or made by onnxruntime from `DequantizeLinear` and `MatMul`.
        native: nodes of the `onnxq` domain that run in onnxq's own kernels, on the packed weight, by operator.
        native_int8: how many of those round activations to int8, by operator.
        functions: other nodes of the `onnxq` domain by operator, without those that only prepare scales for another:
            the function in the model runs, and onnxruntime folds it to float weights when it loads.
        rounded: activations that are rounded by a function: to small floats, or with scales of their own for each row.
        rotated: values that a function rotates (`Hadamard`).
        looked_up: lookups in packed tables (`Gather<F>`), by a function that unpacks the rows asked for.
        cached: tensors of keys and values that are unpacked by a function (`CacheDequantize<F>`).
        dequantized: weights whose `DequantizeLinear` stays: they are expanded to float again in every run.
        integer: matmuls and convolutions between two `DequantizeLinear` nodes, left to onnxruntime's integer kernels.
        plain: matmuls and convolutions with a float weight.
    """

    fused: tuple[FusedMatMuls, ...] = ()
    native: dict[str, int] = field(default_factory=dict)
    native_int8: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    rounded: int = 0
    rotated: int = 0
    looked_up: int = 0
    cached: int = 0
    dequantized: int = 0
    integer: int = 0
    plain: int = 0

    @property
    def rounds_activations(self) -> bool:
        """Whether some kernel rounds activations to int8, which costs accuracy that the weights do not account for."""
        return bool(self.native_int8) or any(kind.accuracy_level == INT8_LEVEL for kind in self.fused)

    def sentences(self) -> list[str]:
        """One line for each way that is taken, for a report."""
        lines = []
        for kind in self.fused:
            how = "activations rounded to int8" if kind.accuracy_level == INT8_LEVEL else "float activations"
            matmuls = number_of(kind.count, f"fused {kind.bits}-bit matmul")
            lines.append(f"{matmuls} at accuracy level {kind.accuracy_level} ({how})")
        for name, count in self.native.items():
            rounding = self.native_int8.get(name, 0)
            line = f"{count} onnxq {name} in a native kernel, on packed weights"
            lines.append(line + (f" ({rounding} with activations rounded to int8)" if rounding else ""))
        for name, count in self.functions.items():
            where = " (their kernel is for CUDA)" if is_tiled(name) else ""
            lines.append(f"{count} onnxq {name}, folded to float at load{where}")
        if self.rounded:
            lines.append(f"{number_of(self.rounded, 'activation')} rounded by a function in every run")
        if self.rotated:
            lines.append(f"{number_of(self.rotated, 'value')} rotated by a function in every run")
        if self.looked_up:
            lines.append(
                f"{number_of(self.looked_up, 'lookup')} in packed tables, of which only those rows are unpacked"
            )
        if self.cached:
            lines.append(f"{number_of(self.cached, 'cache tensor')} packed and unpacked by functions in every run")
        if self.dequantized:
            lines.append(f"{number_of(self.dequantized, 'weight')} dequantized to float in every run")
        if self.integer:
            lines.append(f"{number_of(self.integer, 'product')} of quantized activations and quantized weights")
        if self.plain:
            lines.append(f"{number_of(self.plain, 'product')} with float weights")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"fused": [asdict(kind) for kind in self.fused]}


def execution(
    model: Model | str | Path, *, accuracy_level: int | None = None, native: bool = True, cuda: bool = False
) -> Execution:
    """Tell how the weights of a model run in a session that `onnxq.session` makes, on the CPU unless said otherwise.

    Args:
        model: a loaded model, or the path of one.
        accuracy_level: what the session is given; onnxruntime's default is 4, and that of onnxq's kernels 0. It does
            not change `MatMulNBits` nodes that stand in the file, which carry their own level.
        native: as in `onnxq.session`: onnxq's own kernels run where the library is there; False tells how unmodified
            onnxruntime runs the model.
        cuda: the session runs on CUDA. What onnxruntime fuses is told as for the CPU.

    Returns:
        The counts. Functions of other domains than `onnxq` are counted as onnxruntime sees them: written out. Where the
        file does not state the rank of a matmul's input, three dimensions are assumed; onnxruntime infers it, and
        leaves a few matrices with a wide bias or a Relu behind them unfused.
    """
    loaded = model if isinstance(model, Model) else load(model)
    level = DEFAULT_ACCURACY_LEVEL if accuracy_level is None else accuracy_level
    fused: Counter[tuple[int, int]] = Counter()
    ways: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    rounding: Counter[str] = Counter()
    has_kernel = _with_kernels(cuda=cuda) if native else frozenset()
    for node in _inlined(loaded.ir).graph.all_nodes():
        if node.domain == DOMAIN and node.op_type.startswith("QuantizeDequantize"):
            ways["rounded"] += 1
        elif node.domain == DOMAIN and node.op_type == "Hadamard":
            ways["rotated"] += 1
        elif node.domain == DOMAIN and node.op_type.startswith("Gather"):
            ways["looked_up"] += 1
        elif node.domain == DOMAIN and node.op_type.startswith("Cache"):
            # The others of its kind prepare what it reads in the next run.
            ways["cached"] += node.op_type.startswith("CacheDequantize")
        elif node.domain == DOMAIN:
            (kernels if node.op_type in has_kernel else functions)[node.op_type] += not _is_part(node)
            if node.op_type in has_kernel and accuracy_level == INT8_LEVEL and not cuda:
                rounding[node.op_type] += _rounds(node)
        elif node.domain == MICROSOFT and node.op_type == "MatMulNBits":
            fused[node.attributes.get_int("bits", 4), node.attributes.get_int("accuracy_level", 0)] += 1
        elif bits := fused_bits(node):
            fused[bits, level] += 1
        else:
            ways.update(_way(node))
    kinds = (FusedMatMuls(bits, at, count) for (bits, at), count in sorted(fused.items()))
    native_counts, native_int8, function_counts = (
        dict(sorted((+counts).items())) for counts in (kernels, rounding, functions)
    )
    return Execution(tuple(kinds), native_counts, native_int8, function_counts, **ways)


def is_tiled(operator: str) -> bool:
    """Whether an operator of onnxq's reads weights in the order of its GPU kernels."""
    return "Tiled" in operator


def _with_kernels(*, cuda: bool) -> frozenset[str]:
    """Operators that run natively in a session that asked for nothing else: folding is faster than `Dequantize<F>`."""
    if cuda:
        return frozenset() if device.problem() else native_library().cuda_operators
    return frozenset(name for name in native_library().operators if name.startswith(_PRODUCTS))


def _rounds(node: ir.Node) -> bool:
    """Whether a native product rounds its activations at accuracy level 4."""
    shape = node.attributes.get_ints("shape", [0])
    return rounds_activations(node.op_type, shape[0], node.attributes.get_int("block_size", 1))


def _is_part(node: ir.Node) -> bool:
    """Whether only other onnxq operators read the result, for instance scales that are stored in a format."""
    if node.op_type.startswith(_PRODUCTS):
        return False
    if node.op_type.startswith(_OF_ROWS):
        # A factor may come between, to clip.
        return True
    users = [use.node for value in node.outputs for use in value.uses()]
    return bool(users) and all(user.domain == DOMAIN for user in users)


def _way(node: ir.Node) -> list[str]:
    """Which counters of `Execution` a node that no kernel was made for belongs to."""
    if integer_product(node):
        return ["integer"]
    if any(_is_float_weight(node, operand) for operand in weight_operands(node)):
        return ["plain"]
    weight = fixed_tensor(node.inputs[0]) if is_op(node, "DequantizeLinear") else None
    # Biases are int32.
    if weight is None or weight.dtype == ir.DataType.INT32:
        return []
    users = [use.node for use in node.outputs[0].uses()]
    handled = users and all(fused_bits(user) or integer_product(user) for user in users)
    return [] if handled else ["dequantized"]


def _is_float_weight(node: ir.Node, operand: Operand) -> bool:
    value = node.inputs[operand.index] if operand.index < len(node.inputs) else None
    if value is None or operand.embedding:
        return False
    tensor = fixed_tensor(trace(value)[0])
    return tensor is not None and tensor.dtype in FLOAT_TYPES and operand.layout(node, len(tensor.shape)) is not None


def _inlined(model: ir.Model) -> ir.Model:
    """The model with all functions but onnxq's written out, as onnxruntime does at load; tensors are not copied."""
    if all(domain == DOMAIN for domain, _, _ in model.functions):
        return model
    copy = model.clone()
    # onnxruntime reads a function with the versions that the main graph imports; the pass insists that they are equal.
    for function in copy.functions.values():
        shared = function.opset_imports.keys() & copy.graph.opset_imports.keys()
        function.opset_imports.update({domain: copy.graph.opset_imports[domain] for domain in shared})
    return InlinePass(criteria=lambda function: function.domain != DOMAIN)(copy).model
