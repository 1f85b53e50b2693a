"""What a step does to a model, its report, and the mistakes it explains."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.errors import UsageError
from onnxq.recipes import STEPS, load_recipe, parse_recipe

SAMPLES = Path(__file__).parents[3] / "samples"
CODE_LM, DIGITS = SAMPLES / "code_lm", SAMPLES / "digits"
STEP_TEXTS = ("method: smooth", "method: aweq", "method: awq", "method: shift", "method: disassemble")
FEED_FORWARD = """g (float[n,40] x) => (float[n,6] y)
{ h = LayerNormalization(x, s) a = MatMul(h, v) r = Relu(a) y = MatMul(r, w) }"""
SHAPES = {"s": (40,), "v": (40, 30), "w": (30, 6)}
RULE = "\nrules:\n- weight: {format: uint4, granularity: group, group_size: 16, symmetric: false}"


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def loudness(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Scales that make channels of the norm very different."""
    outliers = np.ones(40, np.float32)
    outliers[[3, 17]] = 30, 55
    return {**SHAPES, "s": outliers}


@pytest.mark.parametrize("step", STEP_TEXTS)
def test_every_method_keeps_the_function(step, model, equalized):
    _, _, report = equalized(model(FEED_FORWARD, **loudness(model)), step)
    assert report.changes
    assert not report.quantized


def test_every_diagonal_method_is_tried_here() -> None:
    assert {text.removeprefix("method: ") for text in STEP_TEXTS} <= set(STEPS)


@pytest.mark.parametrize(
    ("path", "feeds", "data"),
    [
        (CODE_LM / "model.onnx", CODE_LM / "heldout.npy", CODE_LM / "calibration.npy"),
        (DIGITS / "vit.onnx", DIGITS / "test.npz", DIGITS / "calibration.npz"),
        (DIGITS / "resnet.onnx", DIGITS / "test.npz", DIGITS / "calibration.npz"),
    ],
    ids=["code_lm", "vit", "resnet"],
)
@pytest.mark.parametrize("step", ["smooth", "disassemble"])
def test_samples_keep_their_outputs(step, path, feeds, data, tmp_path):
    recipe = parse_recipe(f"equalize: [{{method: {step}}}]")
    calibration = onnxq.Calibration(data, sequence=64, samples=4)
    report = onnxq.quantize(path, recipe, output=tmp_path / "out.onnx", calibration=calibration)
    found = np.load(feeds)
    feed = {"input_ids": found[None, :64].astype(np.int64)} if feeds.suffix == ".npy" else {"image": found["image"][:4]}
    before, after = (
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for each in (path, tmp_path / "out.onnx")
    )
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    kinds = {str(each.done).split(",")[0] for each in report.changes if each.done}
    wanted = {"code_lm": {"norm", "gate", "value"}, "vit": {"norm", "value"}, "resnet": {"norm"}}
    name = "code_lm" if feeds.suffix == ".npy" else path.stem
    expected = {f"in a {kind} site" for kind in wanted[name] - ({"value"} if step == "disassemble" else set())}
    assert kinds == expected


def test_ranges_are_equal_after_aweq(model, equalized):
    before, after, _ = equalized(model(FEED_FORWARD, **loudness(model)), "method: aweq, sites: norm")
    old, new = constants(before), constants(after)
    scales = new["v"][:, 0] / old["v"][:, 0]
    gamma = next(array for name, array in new.items() if array.shape == (40,))
    assert np.allclose(gamma * scales, old["s"], rtol=1e-5)
    assert np.allclose(new["v"], old["v"] * scales[:, None], rtol=1e-5)
    assert np.ptp(np.log(scales)) > 1


def test_shift_changes_no_mantissa(model, equalized):
    before, after, report = equalized(model(FEED_FORWARD, **loudness(model)), "method: shift", tolerance=0)
    assert all(each.done for each in report.changes)
    ratio = constants(after)["v"] / constants(before)["v"]
    assert np.array_equal(np.exp2(np.rint(np.log2(ratio))), ratio)
    assert len(np.unique(ratio)) > 1


def test_disassembly_narrows_the_range_that_products_read(model, equalized):
    before, after, report = equalized(
        model(FEED_FORWARD, **loudness(model)), "method: disassemble, ratio: 0.2, sites: norm"
    )
    (change,) = [each for each in report.changes if each.place == "h"]
    assert "of 40 channels added" in str(change.done)
    added = int(str(change.done).split(", ")[1].split()[0])
    assert 0 < added <= 8
    weight = constants(after)["v"]
    assert weight.shape == (40 + added, 30)
    assert sum(node.op_type == "Gather" for node in after.graph.node) == 1
    old = constants(before)["v"]
    # Copies of a channel that was split meet the row that it had.
    copied = [row for row in weight if (np.abs(old - row).max(1) < 1e-6).any()]
    assert len(copied) == len(weight)


def test_assembly_keeps_the_width_and_merges_what_is_alike(model, equalized):
    # Neighbours among these channels say the same, and the same is made of them.
    text = """g (float[n,20] z) => (float[n,30] y)
    { x = Gather<axis=-1>(z, twice) h = LayerNormalization(x, s) y = MatMul(h, v) }"""
    scale = np.ones(40, np.float32)
    scale[[6, 7]] = 40
    weight = np.repeat(np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32), 2, axis=0)
    made = model(text, s=scale, v=weight, twice=np.repeat(np.arange(20), 2))
    _, after, report = equalized(made, "method: disassemble, ratio: 0.2, assemble: true")
    assert "merged" in str(report.changes[0].done)
    assert constants(after)["v"].shape == (40, 30)


def test_several_alphas_are_told_apart(model, equalized):
    _, _, report = equalized(model(FEED_FORWARD, **loudness(model)), "method: smooth, alpha: [0.4, 0.6, 0.8]")
    assert all("alpha 0." in str(each.done) for each in report.changes)
    assert {each.step for each in report.changes} == {"smooth, alpha 0.4|0.6|0.8"}


def test_steps_follow_each_other(model):
    recipe = parse_recipe(f"equalize: [{{method: shift}}, {{method: smooth}}]{RULE}")
    made = model(FEED_FORWARD, **loudness(model))
    data = onnxq.Calibration(np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32))
    _, report = onnxq.quantize_proto(made, recipe, calibration=data)
    assert [each.step for each in report.changes] == ["shift, fp4_e2m1"] * 2 + ["smooth, alpha 0.5"] * 2
    assert len(report.quantized) == 2


def test_only_what_meets_a_quantized_weight_is_scaled(model):
    recipe = parse_recipe(f"equalize: [{{method: smooth}}]{RULE}\n  match: {{name: w}}")
    data = onnxq.Calibration(np.random.default_rng(0).standard_normal((8, 40)).astype(np.float32))
    _, report = onnxq.quantize_proto(model(FEED_FORWARD, **loudness(model)), recipe, calibration=data)
    assert [each.place for each in report.changes] == ["r"]


def test_awq_lowers_the_error_of_the_calibration_data(model):
    made = model(FEED_FORWARD, **loudness(model))
    x = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
    errors = []
    for steps in ("", "equalize: [{method: awq}]\n"):
        quantized, _ = onnxq.quantize_proto(made, parse_recipe(steps + RULE), calibration=onnxq.Calibration(x))
        found = [
            onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
                None, {"x": x}
            )[0]
            for each in (made, quantized)
        ]
        errors.append(np.square(found[1] - found[0]).mean())
    assert errors[1] < 0.8 * errors[0]


def test_sizes_in_the_report_are_those_of_the_model_that_came_in(tmp_path):
    recipe = load_recipe("int4").model_copy(update={"equalize": parse_recipe("equalize: [{method: smooth}]").equalize})
    calibration = onnxq.Calibration(CODE_LM / "calibration.npy", sequence=32, samples=2)
    plain = onnxq.quantize(CODE_LM / "model.onnx", "int4", output=tmp_path / "plain.onnx")
    report = onnxq.quantize(CODE_LM / "model.onnx", recipe, output=tmp_path / "out.onnx", calibration=calibration)
    sizes = [{each.weight: each.size_bytes for each in made.entries} for made in (plain, report)]
    assert sizes[0] == sizes[1]
    assert report.output_bytes < 1.01 * plain.output_bytes


def test_data_is_asked_for(model, tmp_path):
    made = model(FEED_FORWARD, **SHAPES)
    recipe = parse_recipe("name: mine\nequalize: [{method: smooth}]" + RULE)
    with pytest.raises(UsageError, match=r"'smooth, alpha 0\.5' of recipe 'mine' looks at activations: it needs data"):
        onnxq.quantize_proto(made, recipe)
    feeds = iter([{"x": np.ones((2, 40), np.float32)}])
    with pytest.raises(UsageError, match="give a list of feeds"):
        onnxq.quantize_proto(made, recipe, calibration=onnxq.Calibration(feeds))
    onnx.save(made, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="changes the float model first"):
        onnxq.calibrate(
            tmp_path / "model.onnx",
            onnxq.Calibration(np.ones((2, 40), np.float32)),
            recipe=recipe,
            output=tmp_path / "stats.safetensors",
        )


def test_float16_weights_that_scales_would_overflow_are_refused(model):
    made = model(
        """g (float16[n,4] x) => (float16[n,2] y) { h = LayerNormalization(x, s) y = MatMul(h, v) }""",
        s=np.array([60000, 1, 1, 1], np.float16),
        v=np.array([[60000, 1], [1, 1], [1, 1], [1, 1]], np.float16),
    )
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float16)
    with pytest.raises(onnxq.OnnxqError, match="'v' would leave the range of FLOAT16"):
        onnxq.quantize_proto(
            made, parse_recipe("equalize: [{method: smooth, alpha: 1}]"), calibration=onnxq.Calibration(x / 1000)
        )


def test_passes_over_the_data_give_the_same_as_one(model, monkeypatch):
    made = model(FEED_FORWARD, **loudness(model))
    x = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
    found = []
    for budget in (1 << 30, 1):
        monkeypatch.setattr("onnxq.passes.equalize.apply.BUDGET_BYTES", budget)
        recipe = parse_recipe("equalize: [{method: awq}]\n" + RULE)
        quantized, report = onnxq.quantize_proto(made, recipe, calibration=onnxq.Calibration(x))
        assert sum(each.done is not None for each in report.changes) == 2
        found.append({name: array.tobytes() for name, array in constants(quantized).items()})
    assert found[0] == found[1]


def test_data_that_only_a_step_looks_at_was_used(model):
    recipe = parse_recipe("equalize: [{method: smooth}]\nrules: [{weight: {format: int8}}]")
    data = onnxq.Calibration(np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32))
    _, report = onnxq.quantize_proto(model(FEED_FORWARD, **SHAPES), recipe, calibration=data)
    assert "calibrated on 5 samples" in report.notes
    assert not any("not used" in each for each in report.warnings)
