"""`Joining`: weights of products that become one are kept until the last of them is packed, and written as one."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.model.labels import together
from onnxq.model.sites import Weight
from onnxq.passes.edit import Editor
from onnxq.passes.joining.families import Family, find_families
from onnxq.passes.joining.product import join
from onnxq.passes.sink import Memory, Sink
from onnxq.passes.step import Change

STEP = "join products"


class Joining:
    """The families of a model on their way.

    What is packed of a family is held in memory until its last weight is done; `order` brings those together.

    Attributes:
        changes: What was joined, and why other families were not.
    """

    def __init__(self, graph: ir.Graph, weights: Sequence[Weight], sink: Sink, *, wanted: bool) -> None:
        """Look for families.

        Args:
            graph: The main graph, not quantized yet.
            weights: Those that will be quantized.
            sink: Where bytes go in the end.
            wanted: Whether there are kernels for joined products; if not, there are no families.
        """
        self.changes: list[Change] = []
        self._graph, self._sink = graph, sink
        self._families = list(find_families(graph, weights)) if wanted else []
        self._family = {name: family for family in self._families for name in family.weights}
        self._open = {family: set(family.weights) for family in self._families}
        self._held = {family: _Held() for family in self._families}

    def order(self, names: Sequence[str]) -> list[int]:
        """Numbers of these weights in the order in which to quantize them: a family comes where its first one is."""
        first: dict[Family, int] = {}
        for number, name in enumerate(names):
            if (family := self._family.get(name)) is not None:
                first.setdefault(family, number)
        where = [first[self._family[name]] if name in self._family else number for number, name in enumerate(names)]
        return sorted(range(len(names)), key=lambda number: where[number])

    def sink(self, name: str) -> Sink:
        """Where the bytes of a weight go for now."""
        return self._held[self._family[name]] if name in self._family else self._sink

    def finished(self, editor: Editor, name: str) -> None:
        """A weight has been replaced; with the last of its family all become one, or are written as they are."""
        family = self._family.get(name)
        if family is None:
            return
        self._open[family].discard(name)
        if self._open[family]:
            return
        reason = join(editor, family, self._sink)
        done = None if reason else f"one product with {len(family.weights)} weights"
        self.changes.append(Change(STEP, together(family.weights), done, reason))
        for tensor in self._held.pop(family).tensors:
            value = self._graph.initializers.get(tensor.name or "")
            if value is not None and value.const_value is tensor:
                shape = tensor.shape.numpy()
                value.const_value = self._sink.append(tensor.name or "", tensor.dtype, shape, [tensor.tobytes()])


class _Held(Memory):
    """Remembers its tensors."""

    def __init__(self) -> None:
        self.tensors: list[ir.TensorProtocol] = []

    def append(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], chunks: Iterable[bytes | np.ndarray]
    ) -> ir.TensorProtocol:
        """See `Sink.append`."""
        self.tensors.append(super().append(name, dtype, shape, chunks))
        return self.tensors[-1]
