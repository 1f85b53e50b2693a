"""A part of a model, from values that are given to values that are wanted, ready for a session."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxq.model.form import Form
from onnxq.model.load import Model
from onnxq.model.places import replace_tensors
from onnxq.model.taps import Tap, prune
from onnxq.model.temporary import opened


@contextmanager
def segment(
    model: Model,
    given: Mapping[str, onnx.ValueInfoProto],
    taps: Sequence[Tap],
    *,
    passed: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[bytes | str]:
    """What `onnxruntime.InferenceSession` takes for the part of a model between some values and what taps read.

    Args:
        model: Not changed.
        given: Values of the main graph that become the inputs, in place of what makes them.
        taps: Their outputs become the outputs.
        passed: For values of the main graph, values before them that are taken in their place.
        folder: Where a large part is written; by default the system's folder for temporary files.

    Raises:
        OutputError: A temporary file cannot be written.
    """
    form = Form.of(model.ir)
    graph = form.proto.graph
    for node in graph.node:
        if passed and node.output[0] in passed:
            node.CopyFrom(helper.make_node("Identity", [passed[node.output[0]]], [node.output[0]]))
    graph.node.extend(node for tap in taps for node in tap.nodes)
    del graph.output[:]
    graph.output.extend(output for tap in taps for output in tap.outputs)
    del graph.input[:]
    graph.input.extend(given.values())
    prune(graph, set(given))
    form.forget_unused()
    with opened(form, folder) as source:
        yield source


@contextmanager
def standing_in(model: Model, tensors: Iterable[tuple[ir.TensorProtocol, np.ndarray]]) -> Iterator[None]:
    """While it lasts, other numbers stand in the places of some tensors of a model.

    Args:
        model: The same afterwards.
        tensors: Tensors of the model, each with an array of its shape and type.
    """
    pairs = [(old, ir.Tensor(array, dtype=old.dtype, name=old.name)) for old, array in tensors]
    there, back = {id(old): new for old, new in pairs}, {id(new): old for old, new in pairs}
    try:
        replace_tensors(model.ir, lambda tensor: there.get(id(tensor), tensor))
        yield
    finally:
        replace_tensors(model.ir, lambda tensor: back.get(id(tensor), tensor))
