"""Every tensor of a ModelProto, wherever ONNX lets one stand, and how many bytes each has to have."""

import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from onnxq.errors import ModelError

# Elements that one entry of int32_data holds, by bit width (onnx.proto, TensorProto.int32_data); 6 bits are not packed.
_INT32_ENTRY_ELEMENTS = {4: 2, 2: 4}
_FIELDS = ("float_data", "int32_data", "int64_data", "uint64_data", "double_data")
_SIX_BITS = (ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT6E3M2)
_MAXIMUM_RANK = 64
_MAXIMUM_ELEMENTS = 2**58
_KNOWN = frozenset(int(dtype) for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED)
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


def walk(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Each TensorProto of the model with the place it stands in: graphs, subgraphs, functions, training, sparse."""
    yield from _in_graph(model.graph, "")
    for function in model.functions:
        where = f" of function '{function.domain}::{function.name}'"
        yield from _in_attributes(function.attribute_proto, where)
        yield from _in_nodes(function.node, where)
    for training in model.training_info:
        yield from _in_graph(training.initialization, " of training_info.initialization")
        yield from _in_graph(training.algorithm, " of training_info.algorithm")


def _in_graph(graph: onnx.GraphProto, where: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield f"initializer '{tensor.name}'{where}", tensor
    for sparse in graph.sparse_initializer:
        yield from _in_sparse(sparse, f"sparse initializer '{sparse.values.name}'{where}")
    yield from _in_nodes(graph.node, where)


def _in_nodes(nodes: Iterable[onnx.NodeProto], where: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:
        if node.attribute:
            yield from _in_attributes(node.attribute, f" of node '{node.name}' ({node.op_type}){where}")


def _in_attributes(attributes: Iterable[onnx.AttributeProto], where: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    # The declared type of the attribute is not asked: a tensor in a field that the type does not name is still there.
    for attribute in attributes:
        here = f"attribute '{attribute.name}'{where}"
        if attribute.HasField("t"):
            yield here, attribute.t
        for tensor in attribute.tensors:
            yield here, tensor
        if attribute.HasField("sparse_tensor"):
            yield from _in_sparse(attribute.sparse_tensor, here)
        for sparse in attribute.sparse_tensors:
            yield from _in_sparse(sparse, here)
        for graph in graphs_in(attribute):
            yield from _in_graph(graph, f" in {here}")


def graphs_in(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The graphs that an attribute holds, whatever type it declares."""
    return [*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs]


def _in_sparse(sparse: onnx.SparseTensorProto, where: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    yield f"values of {where}", sparse.values
    yield f"indices of {where}", sparse.indices


def dtype_of(tensor: onnx.TensorProto, where: str) -> ir.DataType:
    """The element type.

    Raises:
        ModelError: the type is unset, or newer than this onnx-ir.
    """
    if tensor.data_type not in _KNOWN:
        raise ModelError(f"{where} has the element type {tensor.data_type}, which is not one that ONNX defines")
    return ir.DataType(tensor.data_type)


def elements_of(tensor: onnx.TensorProto, where: str) -> int:
    """The number of elements.

    Raises:
        ModelError: a dimension is negative, or the shape is one that no array can have.
    """
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{where} has a negative dimension: {list(tensor.dims)}")
    # numpy refuses both, for empty arrays too.
    if len(tensor.dims) > _MAXIMUM_RANK or math.prod(dim for dim in tensor.dims if dim) > _MAXIMUM_ELEMENTS:
        raise ModelError(f"{where} has a shape that no array can have: {list(tensor.dims)[:8]}")
    return math.prod(tensor.dims)


def stored_bytes(tensor: onnx.TensorProto, where: str) -> int:
    """Bytes that the tensor takes in `raw_data` or external data.

    Raises:
        ModelError: the type has no fixed size, or a dimension is negative.
    """
    dtype = dtype_of(tensor, where)
    if dtype == ir.DataType.STRING:
        raise ModelError(f"{where} holds strings, which ONNX does not allow in raw or external data")
    return -(-elements_of(tensor, where) * dtype.bitwidth // 8)


def check_embedded(tensor: onnx.TensorProto, where: str) -> None:
    """Refuse a tensor whose embedded data does not have the size that its shape and type ask for.

    Raises:
        ModelError: too few or too many bytes or entries, or bits outside a 6-bit code.
    """
    dtype = dtype_of(tensor, where)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data
        expected = stored_bytes(tensor, where)
        if len(raw) != expected:
            raise _wrong_size(where, tensor, f"{expected} bytes", len(raw))
        check_padding(raw[-1:], dtype, elements_of(tensor, where), where)
        return
    elements = elements_of(tensor, where)
    if dtype == ir.DataType.STRING:
        expected, found = elements, len(tensor.string_data)
    else:
        per_entry = _INT32_ENTRY_ELEMENTS.get(dtype.bitwidth, 1)
        expected = elements * 2 if dtype in _COMPLEX else -(-elements // per_entry)
        found = sum(len(getattr(tensor, field)) for field in _FIELDS)
    if found != expected:
        raise _wrong_size(where, tensor, f"{expected} values", found)
    if dtype in _SIX_BITS and any(not 0 <= code < 64 for code in tensor.int32_data):
        raise ModelError(f"{where} has a value that is not a 6-bit code")


def check_padding(last: bytes, dtype: ir.DataType, elements: int, where: str) -> None:
    """Refuse 6-bit data whose unused bits are not zero (onnx.proto asks for zeros, and readers insist on it).

    Raises:
        ModelError: an unused bit of the last byte is set.
    """
    if dtype in _SIX_BITS and last and (used := elements * 6 % 8) and last[0] >> used:
        raise ModelError(f"{where} is {dtype} data with padding bits that are not zero")


def _wrong_size(where: str, tensor: onnx.TensorProto, expected: str, found: int) -> ModelError:
    return ModelError(
        f"{where} holds {found} where its shape {list(tensor.dims)} and type "
        f"{ir.DataType(tensor.data_type)} ask for {expected}"
    )
