"""Any PyTorch module to one ONNX file, through `torch.onnx.export(dynamo=True)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.exporters.surroundings import quiet, require
from onnxq.model.check import reason_of
from onnxq.model.load import Model
from onnxq.model.save import stage
from onnxq.model.scopes import nodes

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[str | int, ...]]
"""The names of the dimensions of inputs and outputs."""


def export(
    module: "torch.nn.Module",
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | Path,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset: int | None = None,
    shapes: Shapes | None = None,
    force: bool = False,
) -> Path:
    """Write a PyTorch module as an ONNX model.

    Args:
        module: exported in evaluation mode.
        args: an example of its positional inputs.
        kwargs: an example of its inputs by name.
        output: the .onnx file to write. It appears complete or not at all.
        dynamic_shapes: which dimensions may vary, as `torch.export.export` takes it; by default none.
        input_names: of the model.
        output_names: of the model.
        opset: version of the standard operators; by default PyTorch's (20 in 2.13).
        shapes: names for the dimensions of inputs and outputs, in place of those that PyTorch finds.
        force: replace an output that exists.

    Raises:
        ModelError: PyTorch cannot export the module.
        OutputError: the output exists, or cannot be written.
        MissingExtraError: PyTorch is not installed.
    """
    require("torch", "onnxscript")
    import torch

    with stage(output, force=force) as staging:
        was_training = module.training
        module.eval()
        try:
            with quiet():
                program = torch.onnx.export(
                    module,
                    tuple(args),
                    kwargs=dict(kwargs or {}),
                    dynamic_shapes=dynamic_shapes,
                    input_names=input_names,
                    output_names=output_names,
                    opset_version=opset,
                    dynamo=True,
                    verbose=False,
                )
        except Exception as error:
            raise ModelError(f"PyTorch {torch.__version__} cannot export the module: {reason_of(error)}") from error
        finally:
            module.train(was_training)
        if program is None:
            raise ModelError("PyTorch gave no ONNX model")
        model = program.model
        _strip_traces(model)
        for value in (*model.graph.inputs, *model.graph.outputs):
            if dims := (shapes or {}).get(value.name or ""):
                value.shape = ir.Shape(dims)
        return staging.commit(Model(model, None, external=False, size_bytes=0))


def _strip_traces(model: ir.Model) -> None:
    """Drop what the exporter notes about where things came from, paths of this machine among it, but for the module."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in nodes(model):
        for key in [key for key in node.metadata_props if key != "namespace"]:
            del node.metadata_props[key]
