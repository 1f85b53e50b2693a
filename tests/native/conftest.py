"""Nodes of onnxq's operators in models of their own, run by the library and told in float64 by numpy."""

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxq.formats import Format, get_format, pack
from onnxq.functions import functions, operator_suffix
from onnxq.runtime.native import native_library
from onnxq.runtime.register import register

# Without avxvnni, which has the float products of avx2.
ISAS = [each for each in native_library().instruction_sets if each != "avxvnni"] or ["missing"]
NUMBERS = {"float32": 1, "float16": 10, "bfloat16": 16}
# Half a unit in the last place, which rounding the result costs.
ROUNDING = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}


def number(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def codes_of(kind: Format, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    finite = np.flatnonzero(np.isfinite(kind.values)).astype(np.uint8)
    return finite[rng.integers(0, len(finite), shape)]


@dataclass
class Weight:
    """A random weight: the inputs and attributes of a node, and in float64 what they mean."""

    kind: Format
    shape: tuple[int, ...]
    axis: int
    block: int
    inputs: dict[str, np.ndarray]
    values: np.ndarray

    @classmethod
    def random(
        cls,
        name: str,
        shape: tuple[int, ...],
        block: int,
        *,
        axis: int = 0,
        scale: str = "float32",
        asymmetric: bool = False,
        one: bool = False,
        bias: str | None = None,
        seed: int = 0,
    ) -> "Weight":
        rng, kind = np.random.default_rng(seed), get_format(name)
        block = max(shape[axis], 1) if one else block
        groups = tuple(-(-dim // block) if at == axis else dim for at, dim in enumerate(shape))
        stored = (1,) * len(shape) if one else groups
        codes = codes_of(kind, shape, rng)
        scales = rng.uniform(0.5, 1.5, stored).astype(number(scale))
        inputs = {"packed": pack(codes, kind.bits), "scale": scales}
        index = np.arange(shape[axis]) // block
        units = kind.values[codes].astype(np.float64)
        if asymmetric:
            zeros = codes_of(kind, stored, rng)
            inputs["zero_point"] = pack(zeros, kind.bits)
            units -= np.broadcast_to(kind.values[zeros].astype(np.float64), groups).take(index, axis)
        values = units * np.broadcast_to(scales.astype(np.float64), groups).take(index, axis)
        if bias:
            inputs["bias"] = rng.standard_normal(shape[1]).astype(number(bias))
        return cls(kind, shape, axis, block, inputs, values)

    def operator(self, family: str) -> str:
        return family + operator_suffix(self.kind) + ("Asymmetric" if "zero_point" in self.inputs else "")

    def node(self, family: str, dtype: str, changed: dict[str, Any]) -> onnx.NodeProto:
        attributes: dict[str, Any] = {"shape": list(self.shape), "block_size": self.block, "dtype": NUMBERS[dtype]}
        if family == "Dequantize":
            attributes["axis"] = self.axis
        attributes = {key: value for key, value in (attributes | changed).items() if value is not None}
        first = [] if family == "Dequantize" else ["x"]
        node = helper.make_node(self.operator(family), [*first, *self.inputs], ["y"], "node", domain="onnxq")
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return node

    def model(
        self,
        family: str | None = None,
        dtype: str = "float32",
        *,
        constant: bool = True,
        functions_too: bool = False,
        x_shape: list[int | str | None] | None = None,
        attributes: dict[str, Any] | None = None,
    ) -> bytes:
        family = family or ("Linear" if "bias" in self.inputs else "MatMul")
        node = self.node(family, dtype, attributes or {})
        inputs = []
        if family != "Dequantize":
            shape = ["M", *self.shape[:1]] if x_shape is None else x_shape
            inputs.append(helper.make_tensor_value_info("x", NUMBERS[dtype], shape))
        constants = [numpy_helper.from_array(array, name) for name, array in self.inputs.items()]
        if not constant:
            inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in constants]
        graph = helper.make_graph(
            [node],
            "g",
            inputs,
            [helper.make_tensor_value_info("y", NUMBERS[dtype], None)],
            constants if constant else [],
        )
        bodies = functions([node.op_type], 25) if functions_too else []
        return helper.make_model(
            graph,
            ir_version=13,
            opset_imports=[helper.make_opsetid("", 25), helper.make_opsetid("onnxq", 1)],
            functions=[ir.serde.serialize_function(each) for each in bodies],
        ).SerializeToString()

    def product(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In float64: the result, and the sum of magnitudes that rounding errors are relative to."""
        wide = x.astype(np.float64)
        bias = self.inputs.get("bias", np.zeros(self.shape[1])).astype(np.float64)
        return wide @ self.values + bias, np.abs(wide) @ np.abs(self.values) + np.abs(bias)


def assert_close(y: np.ndarray, expected: np.ndarray, magnitudes: np.ndarray, dtype: str = "float32") -> None:
    """Every element is within a few float32 roundings of its sum, and one rounding of the result."""
    assert y.shape == expected.shape
    limit = 2e-6 * magnitudes + (ROUNDING[dtype] * 1.01) * np.abs(expected)
    if dtype == "float16":
        limit += 2.0**-25  # results below the normal numbers
    wrong = ~(np.abs(y.astype(np.float64) - expected) <= limit)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0].tolist()}"


def open_session(
    model: bytes, *, native: bool = True, threads: int = 2, dequantize: bool = False, int8: bool = False
) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if native:
        assert register(options, dequantize=dequantize, int8=int8)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Guarded:
    """A copy of an array that ends right before memory that must not be touched."""

    def __init__(self, array: np.ndarray) -> None:
        size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.address = start + size - array.nbytes
        self.array = np.frombuffer((ctypes.c_uint8 * array.nbytes).from_address(self.address), np.uint8)
        self.array[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self.shape, self.dtype = list(array.shape), array.dtype
        none = 0
        assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, none) == 0


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on each instruction set of this CPU that has float products of its own."""
    monkeypatch.setenv("ONNXQ_CPU_ISA", request.param)
    return str(request.param)


@pytest.fixture
def weight():
    """`weight(format, shape, block, ...)` makes a random `Weight`."""
    return Weight.random


@pytest.fixture(name="assert_close")
def _assert_close():
    return assert_close


@pytest.fixture(name="open_session")
def _open_session():
    if problem := native_library().problem:
        pytest.skip(problem)
    return open_session


@pytest.fixture
def guarded():
    """`guarded(array)` copies an array to right before memory that must not be touched."""
    return Guarded
