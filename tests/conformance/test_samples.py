"""The sample models in every preset: the same weights in all targets, accuracy within bounds, kernels that onnxruntime
really fuses, sizes that are bits and scales and nothing more."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxq.api import quantize_proto
from onnxq.formats import get_format, packed_bytes
from onnxq.recipes import load_recipe

SAMPLES = Path(__file__).parents[2] / "samples"
PRESETS = ["fp4", "fp6", "fp6-e2m3", "fp6-e3m2", "int2", "int3", "int4", "int8", "mxfp4", "mxfp6", "nvfp4"]
WINDOW, WINDOWS = 256, 6
# Perplexity may grow by this fraction with weights rounded to nearest and exact activations.
BOUNDS = {"fp6": 0.003, "fp6-e2m3": 0.003, "fp6-e3m2": 0.02, "mxfp6": 0.02, "fp4": 0.06, "int4": 0.05, "int8": 0.001}


def model_of(name: str) -> onnx.ModelProto:
    return onnx.ModelProto.FromString((SAMPLES / name).read_bytes())


@pytest.fixture(scope="module")
def code_lm() -> onnx.ModelProto:
    return model_of("code_lm/model.onnx")


@pytest.fixture(scope="module")
def perplexity(quiet_session):
    """Of the first windows of the held-out tokens, where fused products keep float activations."""
    stream = np.load(SAMPLES / "code_lm" / "heldout.npy").astype(np.int64)[: WINDOW * WINDOWS].reshape(WINDOWS, WINDOW)

    def measure(model: onnx.ModelProto, level: str = "1") -> float:
        session = quiet_session(model, session__qdq_matmulnbits_accuracy_level=level)
        logits = session.run(["logits"], {"input_ids": stream})[0][:, :-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, stream[:, 1:, None], -1)[..., 0]
        return float(np.exp((np.log(np.exp(logits).sum(-1)) - chosen).mean()))

    return measure


@pytest.fixture(scope="module")
def float_perplexity(code_lm, perplexity) -> float:
    return perplexity(code_lm)


@pytest.mark.parametrize("preset", PRESETS)
def test_language_model(preset: str, code_lm, perplexity, float_perplexity, oracle) -> None:
    ort, report = quantize_proto(code_lm, preset, threads=2)
    assert len(report.quantized) == 42
    assert set(report.reasons) == {
        "embedding: off unless a rule asks for it with role: embedding",
        "read by Mul, not as a weight",
    }
    decoded = oracle(code_lm, ort)
    assert len(decoded.weights) == 42
    for target in ("standard", "ort-int8"):
        other, _ = quantize_proto(code_lm, preset, target=target, threads=2)
        for key, weight in oracle(code_lm, other).weights.items():
            np.testing.assert_array_equal(weight, decoded.weights[key])
        if target == "ort-int8" and preset in ("fp6", "fp6-e2m3", "fp4", "mxfp4", "nvfp4"):
            kernels = sum(node.op_type == "MatMulNBits" for node in other.graph.node)
            assert kernels == sum(each.format in ("fp6_e2m3", "fp4_e2m1") for each in report.quantized)
            in_kernels = perplexity(other)
    found = perplexity(ort)
    assert found == pytest.approx(perplexity(decoded.model), rel=1e-4)
    if preset in BOUNDS:
        assert found / float_perplexity - 1 < BOUNDS[preset]
    if preset in ("fp6", "fp6-e2m3", "fp4"):
        assert in_kernels == pytest.approx(found, rel=3e-3)


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.ModelProto.FromString((folder / "optimized.onnx").read_bytes())


@pytest.mark.parametrize(("preset", "bits"), [("int4", 4), ("int8", 8), ("int2", 2)])
def test_onnxruntime_fuses_every_product(preset: str, bits: int, code_lm, tmp_path: Path) -> None:
    emitted, _ = quantize_proto(code_lm, preset, threads=2)
    nodes = optimized(emitted, tmp_path).graph.node
    kernels = [{each.name: each.i for each in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
    assert [kernel["bits"] for kernel in kernels] == [bits] * 42
    assert not any(node.op_type == "DequantizeLinear" for node in nodes)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("target", ["ort", "standard", "ort-int8"])
def test_file_holds_bits_and_scales_and_no_more(preset: str, target: str, code_lm) -> None:
    emitted, report = quantize_proto(code_lm, preset, target=target, threads=2)
    before = {each.name: each.ByteSize() for each in code_lm.graph.initializer}
    after = {each.name: each.ByteSize() for each in emitted.graph.initializer}
    assert set(before) - set(after) == {entry.weight for entry in report.quantized}
    spec = load_recipe(preset).rules[0].weight
    for entry in report.quantized:
        kind, count, channels = get_format(entry.format), int(np.prod(entry.shape)), entry.shape[1]
        groups = channels * (1 if spec.group_size is None else -(-entry.shape[0] // spec.group_size))
        scale = {"auto": 4, "fp16": 2, "e8m0": 1, "e4m3": 1}[spec.scale]
        expected = packed_bytes(count, kind.bits) + groups * scale
        expected += 0 if spec.symmetric else packed_bytes(groups, kind.bits)
        if target == "ort-int8" and kind.name in ("fp6_e2m3", "fp4_e2m1"):
            # Blocks of at most 256 weights have a float scale each there, and the last one is filled up.
            block = next(each for each in (256, 128, 64, 32, 16) if (spec.group_size or 256) % each == 0)
            blocks = -(-entry.shape[0] // block)
            assert entry.result_bytes <= channels * blocks * (block + 4)
            continue
        assert expected <= entry.result_bytes <= expected + 8
    added = sum(size for name, size in after.items() if name not in before)
    removed = sum(size for name, size in before.items() if name not in after)
    # Names, types and shapes of two or three tensors a weight.
    assert added <= sum(entry.result_bytes for entry in report.quantized) + 42 * 300
    functions = sum(each.ByteSize() for each in emitted.functions)
    assert functions < 6_000
    assert emitted.ByteSize() <= code_lm.ByteSize() - removed + added + functions + 42 * 700


@pytest.mark.parametrize("target", ["ort", "standard", "ort-int8"])
@pytest.mark.parametrize("preset", ["fp6", "int4", "nvfp4"])
def test_names_order_and_metadata_survive(preset: str, target: str, code_lm) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(code_lm)
    model.metadata_props.add(key="author", value="somebody")
    model.graph.node[-1].metadata_props.add(key="place", value="layer")
    emitted, _ = quantize_proto(model, preset, target=target, threads=2)
    assert list(emitted.graph.input) == list(code_lm.graph.input)
    assert list(emitted.graph.output) == list(code_lm.graph.output)
    names = [node.name for node in code_lm.graph.node]
    folded = {node.name for node in code_lm.graph.node if node.op_type in ("Cast", "Transpose")}
    kept = [node.name for node in emitted.graph.node if node.name in set(names)]
    assert kept == [name for name in names if name in set(kept)]
    assert set(names) - set(kept) <= folded
    properties = {each.key: each.value for each in emitted.metadata_props}
    assert properties["author"] == "somebody"
    assert properties["onnxq.target"] == target
    assert load_recipe(preset).name in properties["onnxq.recipe"]
    assert set(properties) >= {"onnxq.version"}
    assert {each.key: each.value for each in emitted.graph.node[-1].metadata_props}["place"] == "layer"
    if target != "standard":
        assert emitted.ir_version <= 13
        assert {each.domain: each.version for each in emitted.opset_import}[""] <= 26


@pytest.mark.parametrize(
    ("preset", "target", "opset", "ir_version"),
    [
        ("fp6", "ort", 20, 10),
        ("fp4", "ort", 20, 10),
        ("mxfp4", "ort", 20, 10),
        ("int3", "ort", 20, 10),
        ("int8", "ort", 20, 10),
        ("int4", "ort", 21, 10),
        ("int2", "ort", 25, 13),
        ("fp6-e2m3", "ort-int8", 20, 10),
        ("fp6", "standard", 28, 14),
        ("int4", "standard", 28, 14),
    ],
)
def test_versions_are_raised_only_where_needed(preset: str, target: str, opset: int, ir_version: int, code_lm) -> None:
    emitted, _ = quantize_proto(code_lm, preset, target=target, threads=2)
    assert {each.domain: each.version for each in emitted.opset_import}[""] == opset
    assert emitted.ir_version == ir_version


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.parametrize("preset", PRESETS)
def test_digits(name: str, preset: str, oracle, run) -> None:
    model = model_of(f"digits/{name}.onnx")
    with np.load(SAMPLES / "digits" / "test.npz") as test:
        images, labels = test["image"], test["labels"]
    feeds = {model.graph.input[0].name: images}
    outputs, hits = {}, Counter[str]()
    for target in ("ort", "ort-int8"):
        emitted, report = quantize_proto(model, preset, target=target, threads=2)
        assert len(report.quantized) > 8
        outputs[target] = run(emitted, feeds)[0]
        hits[target] = int((outputs[target].argmax(-1) == labels).sum())
        decoded = run(oracle(model, emitted).model, feeds)[0]
        assert np.abs(outputs[target] - decoded).max() <= 1e-4 * np.abs(decoded).max()
    floor = 0.9 if preset == "int2" else 0.97
    assert min(hits.values()) / len(labels) >= floor
