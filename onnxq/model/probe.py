"""A model with more outputs, in a form that a session can open: how values inside a model are seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError, nearest
from onnxq.model.form import Form
from onnxq.model.load import Model
from onnxq.model.temporary import opened


@contextmanager
def runnable(
    model: Model, extra_outputs: Sequence[str] = (), *, folder: str | Path | None = None
) -> Iterator[bytes | str]:
    """What `onnxruntime.InferenceSession` takes for `model`: its bytes, or the path of a temporary file if it is large.

    Nothing is written beside the model. The temporary file is gone when the context ends, so the session must not
    outlive it.

    Args:
        model: not changed.
        extra_outputs: names of values of the main graph that become outputs too, after the model's own.
        folder: where a large model is written; by default the system's folder for temporary files.

    Raises:
        ModelError: there is no value of such a name.
        OutputError: the temporary file cannot be written.
    """
    outputs = [_value(model.ir.graph, name) for name in extra_outputs]
    form = Form.of(model.ir)
    _add_outputs(form.proto, outputs)
    with opened(form, folder) as source:
        yield source


def _value(graph: ir.Graph, name: str) -> ir.Value:
    values = {value.name: value for value in graph.inputs}
    values.update((value.name, value) for node in graph for value in node.outputs)
    if name not in values:
        raise ModelError(f"the model has no value '{name}'; {nearest(name, (n for n in values if n))}")
    return values[name]


def _add_outputs(proto: onnx.ModelProto, outputs: Sequence[ir.Value]) -> None:
    present = {output.name for output in proto.graph.output}
    for value in outputs:
        if value.name not in present:
            present.add(str(value.name))
            proto.graph.output.append(ir.to_proto(value))
