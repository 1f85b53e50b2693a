"""Every model of the ONNX backend corpus goes through plan and quantize: changed, left alone, or refused by name."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxq.api import plan, quantize_proto
from onnxq.errors import OnnxqError
from onnxq.model.load import from_proto

KINDS = {"node": 1884, "simple": 23, "pytorch-converted": 82, "pytorch-operator": 35}
PRESETS = ["fp4", "fp6", "fp6-e2m3", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "nvfp4"]
TARGETS = ("ort", "standard", "ort-int8")


def corpus(kind: str) -> Iterator[onnx.ModelProto]:
    with warnings.catch_warnings():
        # Making the test data casts values that overflow, on purpose.
        warnings.simplefilter("ignore", RuntimeWarning)
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind=kind)
    for case in cases:
        yield case.model or onnx.ModelProto.FromString((Path(case.model_dir) / "model.onnx").read_bytes())


def frozen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with all float inputs but the first as weights, since the models of single nodes have none."""
    rng, result = np.random.default_rng(0), onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.input[:]
    for number, each in enumerate(model.graph.input):
        dims = each.type.tensor_type.shape.dim
        static = each.type.HasField("tensor_type") and all(dim.HasField("dim_value") for dim in dims)
        if number and static and each.type.tensor_type.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
            array = rng.standard_normal([dim.dim_value for dim in dims]).astype(dtype)
            result.graph.initializer.append(numpy_helper.from_array(array, each.name))
        else:
            result.graph.input.append(each)
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_corpus_goes_through(kind: str, quiet_session) -> None:
    models, outcomes = 0, Counter[str]()
    for number, original in enumerate(corpus(kind)):
        models += 1
        preset, target = PRESETS[number % len(PRESETS)], TARGETS[number % len(TARGETS)]
        outcomes[go_through(original, preset, target, quiet_session)] += 1
        model = frozen(original)
        for each in TARGETS if list(named_weights(model)) else [target]:
            outcomes[go_through(model, preset, each, quiet_session)] += 1
    assert models == KINDS[kind]
    assert sum(outcomes.values()) >= 2 * models
    assert outcomes["left alone"] > models
    if kind == "node":
        assert outcomes["quantized"] >= 60
        assert outcomes["refused"] < 20


def named_weights(model: onnx.ModelProto) -> Iterator[str]:
    """Matrices that an operator of this name may read, whatever else becomes of them."""
    matrices = {each.name for each in model.graph.initializer if len(each.dims) >= 2}
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"):
            yield from matrices.intersection(node.input)


def go_through(model: onnx.ModelProto, preset: str, target: str, quiet_session) -> str:
    try:
        result, report = quantize_proto(model, preset, target=target, threads=1)
    except OnnxqError:
        return "refused"
    assert all((each.format is None) != (each.reason is None) for each in report.entries)
    planned = plan(from_proto(model), preset, target=target) if report.entries else report
    assert [(each.weight, each.reason) for each in planned.entries] == [
        (each.weight, each.reason) for each in report.entries
    ]
    if not report.quantized:
        assert result.SerializeToString() == model.SerializeToString()
        return "left alone"
    onnx.checker.check_model(result)
    if target != "standard" and loads(model, quiet_session):
        quiet_session(result)
    return "quantized"


def loads(model: onnx.ModelProto, quiet_session) -> bool:
    try:
        quiet_session(model)
    except Exception:  # noqa: BLE001 -- whatever onnxruntime says, the input does not load
        return False
    return True
