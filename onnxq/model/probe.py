"""A model with more outputs, in a form that a session can open: how values inside a model are seen."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError, OutputError, nearest
from onnxq.model.form import Form
from onnxq.model.growing import GrowingFile
from onnxq.model.load import Model
from onnxq.model.writing import write_data, write_model

# A session copies a model that it gets as bytes, and maps one that it gets as a file with external data.
IN_MEMORY_BYTES = 256 << 20


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


@contextmanager
def opened(form: Form, folder: str | Path | None = None) -> Iterator[bytes | str]:
    """As `runnable`, for a model that is serialized already."""
    if form.tensor_bytes <= IN_MEMORY_BYTES:
        yield form.tobytes()
        return
    with tempfile.TemporaryDirectory(prefix="onnxq-", dir=folder) as temporary:
        try:
            path = _write(form, Path(temporary))
        except OSError as error:
            raise OutputError(f"cannot write a temporary model in '{temporary}': {error.strerror}") from error
        yield str(path)


def _write(form: Form, folder: Path) -> Path:
    data = GrowingFile(folder / "model.onnx.data")
    try:
        write_data(data, form, data.path.name, lambda _: None)
    finally:
        data.close()
    write_model(folder / "model.onnx", form.parts(), lambda _: None)
    return folder / "model.onnx"


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
