"""A model opened for what can be computed about values inside it: taps are its only outputs, the rest is cut."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from onnxq.errors import ModelError, nearest
from onnxq.model.form import Form
from onnxq.model.load import Model
from onnxq.model.temporary import data_folder, fits_in_memory, write_message
from onnxq.model.tensors import graphs_in


@dataclass(frozen=True)
class Tap:
    """Nodes that read values of the main graph, and the outputs they make.

    Attributes:
        reads: Names of values of the main graph.
        nodes: In topological order; names of what they make are unique in the model.
        outputs: Made by the nodes.
    """

    reads: Sequence[str]
    nodes: Sequence[onnx.NodeProto]
    outputs: Sequence[onnx.ValueInfoProto]


class Tapped:
    """A model that is opened several times, each time with other taps; its weights are written once, if at all."""

    def __init__(self, form: Form, folder: Path | None) -> None:
        """`folder` holds the data that `form` refers to; None where the model is opened from memory."""
        self._form = form
        self._folder = folder
        self._opened = 0
        self._values = _values(form.proto.graph)

    def open(self, taps: Sequence[Tap]) -> bytes | str:
        """What `onnxruntime.InferenceSession` takes: bytes, or a path that is valid as long as the context lasts.

        The model keeps all its inputs. Whatever the taps do not depend on is left out, so it costs nothing.

        Raises:
            ModelError: There is no value that a tap reads.
            OutputError: The temporary file cannot be written.
        """
        for name in (name for tap in taps for name in tap.reads):
            if name not in self._values:
                raise ModelError(f"the model has no value '{name}'; {nearest(name, self._values)}")
        proto = onnx.ModelProto()
        proto.CopyFrom(self._form.proto)
        proto.graph.node.extend(node for tap in taps for node in tap.nodes)
        del proto.graph.output[:]
        proto.graph.output.extend(output for tap in taps for output in tap.outputs)
        prune(proto.graph)
        form = replace(self._form, proto=proto)
        if self._folder is None:
            return form.tobytes()
        self._opened += 1
        return write_message(form, self._folder / f"model-{self._opened}.onnx")


@contextmanager
def tapped(model: Model, *, folder: str | Path | None = None) -> Iterator[Tapped]:
    """Make a model ready to be opened with taps.

    Nothing is written beside the model. A large one is written to a temporary folder, which is gone when the context
    ends, so no session may outlive it.

    Args:
        model: Not changed.
        folder: Where a large model is written; by default the system's folder for temporary files.

    Raises:
        OutputError: The temporary file cannot be written.
    """
    form = Form.of(model.ir)
    if fits_in_memory(form):
        yield Tapped(form, None)
        return
    with data_folder(form, folder) as made:
        yield Tapped(form, made)


def _values(graph: onnx.GraphProto) -> list[str]:
    made = (name for node in graph.node for name in node.output if name)
    return [*(each.name for each in graph.input), *(each.name for each in graph.initializer), *made]


def prune(graph: onnx.GraphProto, given: Collection[str] = ()) -> None:
    """Take out nodes and initializers that no output depends on, nor what makes values that are given."""
    wanted = {output.name for output in graph.output} - set(given)
    kept = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(name for name in _reads(node) if name not in given)
    # An initializer that is an input too is the default of that input.
    wanted.update(each.name for each in graph.input)
    _keep(graph.node, list(reversed(kept)))
    _keep(graph.initializer, [each for each in graph.initializer if each.name in wanted])


def _keep(field: Any, kept: Sequence[Any]) -> None:
    """Leave only some messages in a repeated field."""
    if len(kept) < len(field):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del field[:]
        field.extend(copies)


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in graphs_in(attribute):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from _reads(inner)
