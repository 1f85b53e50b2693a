"""Short notation for the nodes of a tap."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Nodes:
    """Nodes in the order in which they are added, each with outputs of its own.

    Attributes:
        opset: Of the model that they are for.
        made: The nodes.
    """

    def __init__(self, prefix: str, opset: int) -> None:
        """Names of outputs begin with `prefix`."""
        self.opset = opset
        self.made: list[onnx.NodeProto] = []
        self._prefix = prefix

    def several(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node; the names of its outputs."""
        names = [f"{self._prefix}/{len(self.made)}.{number}" for number in range(outputs)]
        self.made.append(helper.make_node(operator, list(inputs), names, **attributes))
        return names

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; its name."""
        return self.several(operator, *inputs, outputs=1, **attributes)[0]

    def ints(self, *values: int) -> str:
        """A list of int64."""
        return self.add("Constant", value_ints=list(values))

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.add("Constant", value_float=value)

    def floats(self, values: np.ndarray) -> str:
        """An array of float32."""
        return self.add("Constant", value=numpy_helper.from_array(np.asarray(values, np.float32)))

    def reduced(self, operator: str, source: str, axis: int | None) -> str:
        """ReduceSum, ReduceMax or ReduceMin over one axis, or over all of them."""
        if axis is None:
            return self.add(operator, source, keepdims=0)
        # Axes became an input of ReduceSum at opset 13, of the others at 18.
        if self.opset >= (13 if operator == "ReduceSum" else 18):
            return self.add(operator, source, self.ints(axis), keepdims=0)
        return self.add(operator, source, axes=[axis], keepdims=0)
