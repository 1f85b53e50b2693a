"""A model whose weights can be given anew in every run, so that one session serves any number of variants.

They are initializers that are inputs of the graph too, which ONNX calls overridable (IR version 4): whoever gives none
gets the model as it is. In the same way something can be added to values on their way to an operator.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxq.model.form import Form
from onnxq.model.load import Model
from onnxq.model.sites import Weight
from onnxq.model.temporary import opened

# Types that onnxruntime takes as numpy arrays.
_FEEDABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Addend:
    """An input that is added to a value where some nodes read it; zero where it is not given.

    Attributes:
        value: Name of a value of the main graph.
        dtype: Its type.
        readers: Each the first output of a node of the main graph, and which input of it.
    """

    value: str
    dtype: ir.DataType
    readers: tuple[tuple[str, int], ...]

    @property
    def name(self) -> str:
        """Of the input."""
        return f"onnxq.addend/{self.value}"

    @property
    def total(self) -> str:
        """Of the sum."""
        return f"onnxq.sum/{self.value}"


def is_overridable(weight: Weight, model: ir.Model) -> bool:
    """Whether a weight can be given anew in a run of `overridable`; one in a subgraph or function cannot."""
    inner = weight.source.producer()
    graph = weight.source.graph if inner is None else inner.graph
    return graph is model.graph and weight.tensor.dtype in _FEEDABLE and (model.ir_version or 0) >= 4


@contextmanager
def overridable(
    model: Model, weights: Sequence[Weight] = (), addends: Sequence[Addend] = (), outputs: Sequence[str] = ()
) -> Iterator[bytes | str]:
    """What `onnxruntime.InferenceSession` takes for the model, with its inputs and some more that may be left out.

    Args:
        model: Not changed.
        weights: Each can be given under the name of its source, in the shape and type in which it is stored; all of
            them `is_overridable`.
        addends: Each can be given under its name, in any shape that broadcasts.
        outputs: Values of the main graph that become outputs too.

    Raises:
        OutputError: A temporary file cannot be written.
    """
    form = Form.of(model.ir)
    graph = form.proto.graph
    for weight in weights:
        name, tensor = str(weight.source.name), weight.tensor
        if weight.source.producer() is not None:
            _make_initializer(graph, name)
        graph.input.append(helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy())))
    _add(graph, addends)
    present = {output.name for output in graph.output}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs) if name not in present)
    with opened(form) as source:
        yield source


def _make_initializer(graph: onnx.GraphProto, name: str) -> None:
    """Turn a Constant node into an initializer."""
    at, node = next((at, node) for at, node in enumerate(graph.node) if name in node.output)
    tensor = graph.initializer.add()
    tensor.CopyFrom(next(each.t for each in node.attribute if each.name == "value"))
    tensor.name = name
    del graph.node[at]


def _add(graph: onnx.GraphProto, addends: Sequence[Addend]) -> None:
    """Put the sums before the first node that reads each."""
    wanted = {reader: addend for addend in addends for reader in addend.readers}
    if not wanted:
        return
    nodes, made = [], set[str]()
    for node in graph.node:
        for index in range(len(node.input)):
            addend = wanted.get((node.output[0], index))
            if addend is None:
                continue
            if addend.name not in made:
                made.add(addend.name)
                nodes.append(helper.make_node("Add", [addend.value, addend.name], [addend.total]))
                zero = np.zeros((), addend.dtype.numpy())
                graph.initializer.append(numpy_helper.from_array(zero, addend.name))
                graph.input.append(onnx.ValueInfoProto(name=addend.name, type=_any_shape(addend.dtype)))
            node.input[index] = addend.total
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _any_shape(dtype: ir.DataType) -> onnx.TypeProto:
    return onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=int(dtype)))
