"""A part of a model, from values that are given to values that are wanted, ready for a session."""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxq.errors import OutputError
from onnxq.model import probe
from onnxq.model.form import Form
from onnxq.model.growing import GrowingFile
from onnxq.model.load import Model
from onnxq.model.places import replace_tensors
from onnxq.model.taps import Tap, prune
from onnxq.model.writing import write_data, write_model


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
    referred = (tensor.external_data[0].value for tensor in graph.initializer if tensor.external_data)
    kept = {int(each.removeprefix(form.token)) for each in referred}
    if sum(form.apart[number].nbytes for number in kept) <= probe.IN_MEMORY_BYTES:
        yield form.tobytes()
        return
    # What is said to be in a function is not written to the data file.
    form.apart[:] = [
        each if number in kept else dataclasses.replace(each, in_function=True)
        for number, each in enumerate(form.apart)
    ]
    with tempfile.TemporaryDirectory(prefix="onnxq-", dir=folder) as temporary:
        path = Path(temporary) / "segment.onnx"
        try:
            data = GrowingFile(path.with_suffix(".onnx.data"))
            try:
                write_data(data, form, data.path.name, lambda _: None)
            finally:
                data.close()
            write_model(path, form.parts(), lambda _: None)
        except OSError as error:
            raise OutputError(f"cannot write a temporary model in '{temporary}': {error.strerror}") from error
        yield str(path)


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
