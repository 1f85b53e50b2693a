"""Where corrections go: what is added to a product, and the scale and shift of a norm that products read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.model.constants import constant_array, constant_shape
from onnxq.model.load import Model
from onnxq.model.operators import is_op, operator_name
from onnxq.model.opset import INITIALIZER_IR_VERSION, raise_to
from onnxq.model.products import is_unscaled, with_bias
from onnxq.model.shapes import infer_shapes
from onnxq.model.sites import Site
from onnxq.passes.constants import give_operand
from onnxq.passes.edit import Editor, add_behind, drop_unused, take_back
from onnxq.passes.equalize.places import Place, find_places, products_of
from onnxq.passes.equalize.walk import Products, Scaled
from onnxq.passes.sink import Memory
from onnxq.passes.solving import Work
from onnxq.passes.step import Change, Refusal

BIAS, NORM = "correct: bias", "correct: norm"
"""What reports call the corrections."""


@dataclass(frozen=True)
class Bias:
    """What is added to the columns of a product.

    Attributes:
        layer: Number of the weight.
        node: Who adds.
        index: Which input of it is the bias, a constant of its own.
        opened: There was none before, and as long as it is zero there need not be one.
    """

    layer: int
    node: ir.Node
    index: int
    opened: bool

    @property
    def tensor(self) -> ir.TensorProtocol:
        """What is stored."""
        value = self.node.inputs[self.index]
        if value is None or value.const_value is None:
            raise ValueError(self.node.name)
        return value.const_value

    @property
    def words(self) -> str:
        """Where it is, for people."""
        return "in a new Add" if self._is_new_add else f"in the bias of {operator_name(self.node)}"

    @property
    def _is_new_add(self) -> bool:
        return self.opened and self.node.op_type == "Add"

    def put(self, bias: np.ndarray) -> None:
        """Store other numbers, of the shape of those that stand there."""
        value, tensor = self.node.inputs[self.index], self.tensor
        if value is not None:
            value.const_value = ir.Tensor(bias.astype(tensor.dtype.numpy()), tensor.dtype, name=tensor.name)

    def close(self) -> None:
        """Take away what was opened and is zero still."""
        zeros = self.node.inputs[self.index]
        if not self.opened or zeros is None or self.tensor.numpy().any():
            return
        if self._is_new_add:
            take_back(self.node)
        else:
            self.node.resize_inputs(self.index)
            drop_unused(zeros)


def open_biases(model: Model, work: Sequence[Work]) -> tuple[dict[int, Bias], list[Change]]:
    """Give each layer a bias that nobody else reads: its own one, or zeros; by the number of the weight.

    Returns:
        The biases, and why other layers get none.
    """
    raise_to(model.ir, 0, INITIALIZER_IR_VERSION)
    editor, found, changes = Editor(model.ir), {}, []
    for number, item in enumerate(work):
        try:
            found[number] = _open(editor, number, item)
        except Refusal as refusal:
            changes.append(Change(BIAS, item.weight.name, reason=str(refusal)))
    return found, changes


def _open(editor: Editor, number: int, item: Work) -> Bias:
    weight = item.weight
    if item.known is None:
        raise Refusal("nothing is known about what it is multiplied with")
    if len(weight.sites) != 1:
        raise Refusal(f"it is shared by {len(weight.sites)} operators")
    site, columns = weight.sites[0], weight.shape[weight.sites[0].layout.channel]
    place, operand = _place(site, columns)
    if operand is None:
        node = site.node
        zeros = np.zeros(columns, weight.dtype.numpy())
        tensor = Memory().append(editor.fresh(f"{weight.source.name}_bias"), weight.dtype, zeros.shape, [zeros])
        made = editor.constant(tensor, weight.source)
        if node.op_type == "MatMul":
            return Bias(number, add_behind(editor, node.outputs[0], made), 1, opened=True)
        node.resize_inputs(3)
        node.replace_input_with(2, made)
        return Bias(number, node, 2, opened=True)
    give_operand(place, operand, constant_array(place.inputs[operand]), "corrected", editor, Memory())
    return Bias(number, place, operand, opened=False)


def _place(site: Site, columns: int) -> tuple[ir.Node, int | None]:
    """Who adds a bias to a product, and as which input; None where nobody does yet.

    Raises:
        Refusal: None can be added.
    """
    node = site.node
    if not is_op(node, "MatMul", "Gemm", "Conv") or site.index != 1:
        raise Refusal(f"{node.op_type} takes no bias for each column of a weight")
    if node.op_type == "MatMul":
        place, bias = with_bias(node, columns)
        if bias is not None and constant_shape(bias) is not None:
            return place, list(place.inputs).index(bias)
        return node, None
    if node.op_type == "Gemm" and not is_unscaled(node):
        raise Refusal("a Gemm that scales")
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return node, None
    if constant_shape(node.inputs[2]) != (columns,):
        raise Refusal("its bias is not a constant vector")
    return node, 2


@dataclass(frozen=True)
class Norm:
    """A norm whose scale (and shift) takes factors for all layers that read it.

    Attributes:
        tensor: What it gives.
        layers: Numbers of the weights.
        constants: Its own that take the factors.
    """

    tensor: str
    layers: tuple[int, ...]
    constants: tuple[Scaled, ...]

    def put(self, factors: np.ndarray, editor: Editor) -> None:
        """Multiply the channels that it gives.

        Raises:
            ModelError: A constant leaves the range of its type.
        """
        # What belongs to no channel has the label -1.
        wide = np.append(factors.astype(np.float64), 1.0)
        for each in self.constants:
            array, factor = constant_array(each.node.inputs[each.index]).astype(np.float64), wide[each.labels]
            scaled = array / factor if each.divided else array * factor
            give_operand(each.node, each.index, scaled, "corrected", editor, Memory())


def find_norms(model: Model, work: Sequence[Work]) -> tuple[list[Norm], list[Change]]:
    """The norms before layers, and why the factors of other activations cannot be chosen."""
    infer_shapes(model.ir)
    numbers = {item.weight.name: at for at, item in enumerate(work)}
    products = products_of([item.weight for item in work], model.ir.graph)
    found, changes = [], []
    for place in find_places(products, numbers, kinds=["norm"]):
        try:
            found.append(_norm(place, products, numbers, work))
        except Refusal as refusal:
            changes.append(Change(NORM, place.name, reason=str(refusal)))
    return found, changes


def _norm(place: Place, products: Products, numbers: Mapping[str, int], work: Sequence[Work]) -> Norm:
    if place.walk is None:
        raise Refusal(str(place.reason))
    layers = tuple(numbers[products[node][0].name] for node in place.walk.rows)
    if any(work[at].spec.method != "gptq" or work[at].measured is None for at in layers):
        raise Refusal("a layer that reads it is not solved by gptq")
    every = np.arange(place.channels)
    labels = [*place.walk.rows.values(), place.walk.classes]
    if len({work[at].measured for at in layers}) > 1 or not all(np.array_equal(each, every) for each in labels):
        raise Refusal("its channels do not meet one row each of the layers that read it")
    return Norm(place.name, layers, tuple(place.walk.constants))
