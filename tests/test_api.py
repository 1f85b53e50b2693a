"""The calls of Python programs: plan, quantize, quantize_proto."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from onnxq.api import plan, quantize, quantize_proto
from onnxq.errors import ModelError, NonFiniteError, OnnxqError, OutputError, RecipeError, UsageError
from onnxq.passes.target import Target
from onnxq.recipes import load_recipe

TEXT = """<ir_version: 10, opset_import: ["": 21], metadata_props: ["author": "somebody"]>
g (float[3,64] x) => (float[3,64] y)
{ [up] h = MatMul(x, w1) [act] r = Relu(h) [down] d = MatMul(r, w2) [add] y = Add(d, b) }
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    model, rng = parser.parse_model(TEXT), np.random.default_rng(0)
    for name, shape in {"w1": (64, 64), "w2": (64, 64), "b": (64,)}.items():
        tensor = numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        tensor.doc_string = f"about {name}"
        tensor.metadata_props.add(key="from", value="here")
        model.graph.initializer.append(tensor)
    return model


@pytest.fixture
def path(proto: onnx.ModelProto, tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return tmp_path / "m.onnx"


def quantized(report) -> list[str]:
    return [each.weight for each in report.quantized]


def test_file_and_memory_agree(proto: onnx.ModelProto, path: Path) -> None:
    before = proto.SerializeToString()
    emitted, in_memory = quantize_proto(proto, "fp6", threads=1)
    assert proto.SerializeToString() == before
    on_disk = quantize(path, "fp6", output=path.with_name("out.onnx"), threads=1)
    written = onnx.ModelProto.FromString(path.with_name("out.onnx").read_bytes())
    assert {each.name: each for each in written.graph.initializer} == {
        each.name: each for each in emitted.graph.initializer
    }
    assert written.graph.node == emitted.graph.node
    assert [each.weight for each in on_disk.entries] == [each.weight for each in in_memory.entries] == ["w1", "w2"]
    assert on_disk.model_bytes == path.stat().st_size
    assert on_disk.output_bytes == path.with_name("out.onnx").stat().st_size < on_disk.model_bytes
    assert emitted.ByteSize() == in_memory.output_bytes
    json.dumps(on_disk.to_dict())


def test_plan_says_what_quantize_does(path: Path) -> None:
    for preset in ("fp6", "fp4", "mxfp4", "nvfp4", "int2", "int3", "int4", "int8", "fp6-e2m3"):
        for target in get_args(Target):
            planned = plan(path, preset, target=target)
            done = quantize(path, preset, output=path.with_name("out.onnx"), target=target, force=True)
            assert planned.output is None
            for one, other in zip(planned.entries, done.entries, strict=True):
                # Of several candidates, the one that was chosen.
                assert other.spec == (one.spec and one.spec.replace(str(one.format), str(other.format)))
                assert one.reason == other.reason
                assert one.readers == other.readers
                assert other.format is not None
                assert other.format in (one.format or "").split("|")
                # What scales take beside one-byte codes is the only difference.
                assert abs(one.result_bytes - other.result_bytes) <= 4 + (16 * 64 if target == "ort-int8" else 0)


def test_plan_reads_no_weight_and_writes_nothing(path: Path) -> None:
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    plan(path, "int4")
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


def test_untouched_parts_survive(proto: onnx.ModelProto) -> None:
    emitted, _ = quantize_proto(proto, "int8")
    bias = {each.name: each for each in emitted.graph.initializer}["b"]
    assert bias == {each.name: each for each in proto.graph.initializer}["b"]
    kept = [node.name for node in emitted.graph.node if node.op_type != "DequantizeLinear"]
    assert kept == ["up", "act", "down", "add"]
    assert emitted.graph.input == proto.graph.input
    assert emitted.graph.output == proto.graph.output
    properties = {each.key: each.value for each in emitted.metadata_props}
    assert properties["author"] == "somebody"
    assert properties["onnxq.target"] == "ort"
    assert json.loads(properties["onnxq.recipe"])["name"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ["w1", "w2"]),
        ({"include": ("w1",)}, ["w1"]),
        ({"include": "w1"}, ["w1"]),
        ({"include": ["w?"]}, ["w1", "w2"]),
        ({"include": "up"}, ["w1"]),
        ({"exclude": "down"}, ["w1"]),
        ({"exclude": "nothing*"}, ["w1", "w2"]),
        ({"include": "w*", "exclude": "*1"}, ["w2"]),
        ({"include": ()}, ["w1", "w2"]),
        ({"include": "nothing"}, []),
    ],
)
def test_include_and_exclude(arguments: dict, expected: list[str], proto: onnx.ModelProto) -> None:
    _, report = quantize_proto(proto, "fp6", **arguments)
    assert quantized(report) == expected
    assert {each.reason for each in report.skipped} <= {"excluded", "not included"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"recipe": "fp7"}, RecipeError, "did you mean 'fp6'"),
        ({"target": "orT"}, UsageError, "no target 'orT'; did you mean 'ort'"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"threads": -1}, UsageError, "threads is -1"),
    ],
)
def test_mistaken_call(arguments: dict, error: type[OnnxqError], message: str, path: Path) -> None:
    with pytest.raises(error, match=message):
        quantize(path, **{"output": path.with_name("out.onnx"), **arguments})
    assert [each.name for each in path.parent.iterdir()] == ["m.onnx"]


def test_output_is_not_replaced_unasked(path: Path) -> None:
    path.with_name("out.onnx").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"out\.onnx"):
        quantize(path, "fp6", output=path.with_name("out.onnx"))
    assert path.with_name("out.onnx").read_bytes() == b"mine"


def test_broken_weight_leaves_nothing(proto: onnx.ModelProto, path: Path) -> None:
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[3, 5] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(NonFiniteError, match=r"weight 'w1' has 1 NaN or Inf value \(first at \[3, 5\]\)"):
        quantize(path, "fp6", output=path.with_name("out.onnx"))
    assert [each.name for each in path.parent.iterdir()] == ["m.onnx"]


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        quantize(tmp_path / "none.onnx", output=tmp_path / "out.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError):
        plan(tmp_path / "text.onnx")


@pytest.mark.parametrize("recipe", ["none", "fp6"])
def test_nothing_to_do_gives_the_same_bytes(recipe: str, path: Path) -> None:
    report = quantize(path, recipe, output=path.with_name("out.onnx"), exclude="*")
    assert path.with_name("out.onnx").read_bytes() == path.read_bytes()
    assert report.quantized == ()
    assert report.output_bytes == report.model_bytes


def test_progress_counts_elements(path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    quantize(path, "fp6", output=path.with_name("out.onnx"), progress=lambda *step: seen.append(step), threads=1)
    assert seen == [("w1", 4096, 8192), ("w2", 8192, 8192)]


def test_output_of_onnxq_is_a_model_like_any_other(proto: onnx.ModelProto) -> None:
    emitted, _ = quantize_proto(proto, "fp6", include="w1")
    again, report = quantize_proto(emitted, "int4")
    assert quantized(report) == ["w2"]
    onnx.checker.check_model(again, full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(again.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"x": x})[0]).all()


def test_names_that_are_taken_are_not_taken_again(proto: onnx.ModelProto) -> None:
    for name in ("w1_quantized", "w1_scale", "w1_zero_point", "w1_dequantized", "w1_quantized_1"):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), name))
        proto.graph.node.append(onnx.helper.make_node("Relu", [name], [f"{name}_r"]))
    for preset in ("int3", "int4", "fp6", "nvfp4"):
        emitted, _ = quantize_proto(proto, preset)
        onnx.checker.check_model(emitted, full_check=True)
        names = [each.name for each in emitted.graph.initializer]
        assert len(names) == len(set(names))


def test_recipe_object_and_file(proto: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("extends: fp6\nrules:\n  - match: {name: down}\n    skip: by hand\n")
    _, report = quantize_proto(proto, tmp_path / "r.yaml")
    assert quantized(report) == ["w1"]
    assert report.reasons == {"by hand": 1}
    _, report = quantize_proto(proto, load_recipe("int8"))
    assert {each.format for each in report.quantized} == {"int8"}
