"""Shapes of the values of a model, as far as ONNX's shape inference finds them."""

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from onnxq.model.form import Form

Dims = tuple[int | None, ...]


class Shapes:
    """Dimensions of the values of the main graph; None for what depends on the inputs."""

    def __init__(self, model: ir.Model) -> None:
        inferred = onnx.shape_inference.infer_shapes(Form.of(model).proto, data_prop=_has_unique_names(model)).graph
        listed = (*inferred.input, *inferred.value_info, *inferred.output)
        types = {each.name: each.type.tensor_type for each in listed if each.type.tensor_type.HasField("shape")}
        self._known = {name: tuple(_size(dim) for dim in each.shape.dim) for name, each in types.items()}

    def of(self, value: ir.Value | None) -> Dims | None:
        """The dimensions of a value; None where not even their number is known."""
        if value is None:
            return None
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        return self._known.get(value.name or "")

    def last(self, value: ir.Value | None) -> int | None:
        """The last dimension of a value, where it is known."""
        dims = self.of(value)
        return dims[-1] if dims else None


def infer_shapes(model: ir.Model) -> None:
    """Note types and shapes in the model, where exporters left them out and inference finds them."""
    ShapeInferencePass(check_type=False, strict_mode=False, data_prop=_has_unique_names(model))(model)


def _has_unique_names(model: ir.Model) -> bool:
    """Whether no two branches call values alike.

    ONNX 1.23 keeps the data that it propagates by name, so that one such branch would get shapes from the other's.
    """
    names = [value.name for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs]
    return len(set(names) - {""}) == len(names) - names.count("")


def _size(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return dim.dim_value if dim.HasField("dim_value") else None
