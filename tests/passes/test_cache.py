from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

import onnxq
from onnxq.errors import DataError, RecipeError, UsageError
from onnxq.formats import get_format
from onnxq.model.load import load
from onnxq.passes.cache import plan_cache
from onnxq.recipes import CachePart, CacheSpec, Recipe, parse_recipe
from onnxq.runtime.generate import Generator

CODE_LM = Path(__file__).parents[2] / "samples" / "code_lm"
TOKENIZER = CODE_LM / "tokenizer.json"


def recipe(kind="int8", keys="token", values="token"):
    spec = CacheSpec(key=CachePart(format=kind, granularity=keys), value=CachePart(format=kind, granularity=values))
    return Recipe(name="cache", cache=spec)


def calibration():
    return onnxq.Calibration(np.load(CODE_LM / "calibration.npy"), sequence=256, samples=8)


ATTENTION = """
<ir_version: 10, opset_import: ["": 20]>
attention (float[B, S, 32] x, float[B, 2, P, 16] past_key, float[B, 2, P, 16] past_value)
  => (float[B, S, 32] y, float[B, 2, T, 16] present_key, float[B, 2, T, 16] present_value)
{
  shape = Constant<value_ints: ints = [0, 0, 2, 16]>()
  flat = Constant<value_ints: ints = [0, 0, 32]>()
  split = Reshape(x, shape)
  heads = Transpose<perm = [0, 2, 1, 3]>(split)
  present_key = Concat<axis = 2>(past_key, heads)
  doubled = Add(heads, heads)
  present_value = Concat<axis = -2>(past_value, doubled)
  columns = Transpose<perm = [0, 1, 3, 2]>(present_key)
  products = MatMul(heads, columns)
  mixed = MatMul(products, present_value)
  rows = Transpose<perm = [0, 2, 1, 3]>(mixed)
  y = Reshape(rows, flat)
}
"""


def attention(past_key, past_value, x):
    """The model above in float64."""
    heads = x.reshape(*x.shape[:2], 2, 16).transpose(0, 2, 1, 3).astype(np.float64)
    keys, values = np.concatenate([past_key, heads], 2), np.concatenate([past_value, 2 * heads], 2)
    mixed = heads @ keys.transpose(0, 1, 3, 2) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(x.shape)


def rounded(x, name):
    """Numbers [batch, heads, tokens, size] with one float16 scale a row, as the cache holds them."""
    kind = get_format(name)
    scale = (np.abs(x).max(-1, keepdims=True) / np.float32(np.nanmax(kind.values))).astype(np.float16)
    scale = scale.astype(np.float32)
    return kind.quantize_finite((x / scale).astype(np.float32))[1] * scale


@pytest.mark.parametrize("name", ["int8", "int4", "fp8_e4m3", "fp6_e2m3", "fp4_e2m1"])
def test_only_the_past_is_rounded(name):
    made, _ = onnxq.quantize_proto(onnx.parser.parse_model(ATTENTION), recipe(name))
    onnx.checker.check_model(made)
    types = {each.name: each.type.tensor_type for each in (*made.graph.input, *made.graph.output)}
    width = 16 * get_format(name).bits // 8
    for at in ("past", "present"):
        assert types[f"{at}_key"].elem_type == TensorProto.UINT8
        assert types[f"{at}_key"].shape.dim[3].dim_value == width
        assert types[f"{at}_value_scale"].elem_type == TensorProto.FLOAT16
    session = onnxruntime.InferenceSession(made.SerializeToString())
    names = [each.name for each in session.get_inputs() if each.name != "x"]
    past = {each: np.zeros((2, 2, 0, 1 if "scale" in each else width), np.uint8) for each in names}
    past = {each: array.astype(np.float16) if "scale" in each else array for each, array in past.items()}
    outputs = ["y", *(each.replace("past", "present") for each in names)]
    rng, seen = np.random.default_rng(0), []
    for tokens in (3, 1, 2):
        x = rng.standard_normal((2, tokens, 32), np.float32)
        y, *present = session.run(outputs, {"x": x, **past})
        heads = [each.reshape(2, -1, 2, 16).transpose(0, 2, 1, 3) for each in seen] or [np.zeros((2, 2, 0, 16))]
        # Rows are rounded when they are written, each by itself.
        keys = np.concatenate([rounded(each, name) if each.size else each for each in heads], 2)
        values = np.concatenate([rounded(2 * each, name) if each.size else each for each in heads], 2)
        np.testing.assert_allclose(y, attention(keys, values, x), rtol=1e-4, atol=1e-3)
        past = dict(zip(names, present, strict=True))
        seen.append(x)


def test_weights_and_cache_are_quantized_by_one_recipe(sample_with_cache, tmp_path):
    text = "extends: fp6\ncache:\n  key: {format: int4, granularity: channel}\n  value: {format: int4}\n"
    report = onnxq.quantize(
        sample_with_cache("plain"), parse_recipe(text), output=tmp_path / "m.onnx", calibration=calibration()
    )
    assert len(report.quantized) == 42
    assert "12 cache tensors packed and unpacked by functions in every run" in report.notes
    assert report.warnings == ()
    assert any(
        note == "cache: keys int4 per channel, values int4 per token; 408 bytes a token, 3,072 before"
        for note in report.notes
    )
    with Generator(tmp_path / "m.onnx", TOKENIZER, threads=1) as generator:
        together = generator.generate(["import os\n", "class Test"], max_new_tokens=8)
        assert together[1].text == generator.generate(["class Test"], max_new_tokens=8)[0].text


def test_perplexity_behind_a_quantized_cache(sample_with_cache, tmp_path):
    """The sample's promise on a few windows: INT8 costs next to nothing, INT4 little, and channels less than tokens."""
    found = {}
    cases = {"int8": ("int8", "channel"), "int4": ("int4", "channel"), "tokens": ("int4", "token")}
    settings = {"tokens": CODE_LM / "heldout.npy", "limit": 4, "sequence": 96, "threads": 1}
    whole = onnxq.evaluate(CODE_LM / "model.onnx", **settings).value
    settings["cached"] = True
    before = onnxq.evaluate(sample_with_cache("plain"), **settings).value
    assert before == pytest.approx(whole, rel=1e-4)
    for name, (kind, keys) in cases.items():
        path = tmp_path / f"{name}.onnx"
        onnxq.quantize(sample_with_cache("plain"), recipe(kind, keys), output=path, calibration=calibration())
        found[name] = onnxq.evaluate(path, **settings).value / before - 1
    assert abs(found["int8"]) < 0.005
    assert found["int4"] < 0.03
    assert found["int4"] < found["tokens"]


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "int8"), ("int4", "uint8")])
def test_grouped_attention_stores_its_cache_itself(kind, dtype, sample_with_cache, tmp_path):
    path = tmp_path / "m.onnx"
    report = onnxq.quantize(
        sample_with_cache("grouped"), recipe(kind, "channel"), output=path, calibration=calibration()
    )
    assert any(f"keys {kind} per channel, values {kind} per channel" in note for note in report.notes)
    model = load(path)
    past = next(value for value in model.ir.graph.inputs if value.name == "past_key_values.0.key")
    assert past.dtype.name.lower() == dtype
    settings = {"tokens": CODE_LM / "heldout.npy", "limit": 2, "sequence": 96, "cached": True, "threads": 1}
    before = onnxq.evaluate(sample_with_cache("grouped"), **settings).value
    assert onnxq.evaluate(path, **settings).value < before * (1.01 if kind == "int8" else 1.1)


def test_what_stays_float_says_why(sample_with_cache):
    graph = load(sample_with_cache("grouped")).ir.graph
    spec = CacheSpec(key=CachePart(format="fp8_e4m3"), value=CachePart(format="fp8_e4m3"))
    reasons = list(plan_cache(graph, spec).warnings())
    why = "GroupQueryAttention stores keys and values in INT8 or both in INT4"
    assert reasons == [f"cache: past_key_values.0.key and 11 others stay as they are: {why}"]
    odd = onnx.parser.parse_model(ATTENTION.replace("(past_key, heads)", "(heads, past_key)"))
    _, report = onnxq.quantize_proto(odd, recipe())
    assert "cache: past_key stays as it is: the present is no Concat of the past and the new tokens" in report.warnings


MERGED = """
<ir_version: 10, opset_import: ["": 20]>
merged (float[B, 2, S, 16] x, float[B, 2, P, 16] "past_key_values.0.key", bool use_cache_branch)
  => (float[B, 2, S, 16] y, float[B, 2, T, 16] "present.0.key")
{
  y = Identity(x)
  "present.0.key" = If(use_cache_branch) <
    then_branch = with () => (float[B, 2, T, 16] then) { then = Concat<axis = 2>("past_key_values.0.key", x) },
    else_branch = without () => (float[B, 2, T, 16] else) { else = Identity(x) }
  >
}
"""


def test_a_merged_decoder_is_told_to_be_exported_as_one_graph():
    made, report = onnxq.quantize_proto(onnx.parser.parse_model(MERGED), recipe())
    (reason,) = report.warnings
    assert reason.startswith("cache: past_key_values.0.key stays as it is: an If chooses the present")
    assert reason.endswith("export it as one graph (onnxq export)")
    assert made == onnx.parser.parse_model(MERGED)


@pytest.mark.parametrize("names", [("past_key_values.0.decoder.key", "past_key_values.0.encoder.key"), ()])
def test_decoders_that_read_an_encoder_are_told_what_can_be_done(names):
    """As optimum exports them: a decoder for later tokens, which takes a past, and one for the first token."""
    given = "".join(f', float[B, 2, P, 16] "{name}"' for name in names)
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[B, 2, 3, 16] x{given}) => (float[B, 2, 3, 16] '
        '"present.0.decoder.key", float[B, 2, 3, 16] "present.0.encoder.key") '
        '{ "present.0.decoder.key" = Identity(x) "present.0.encoder.key" = Neg(x) }'
    )
    with pytest.raises(DataError, match=r"0\.encoder\.key' holds .* an encoder: .* by a recipe without 'cache'"):
        onnxq.quantize_proto(model, recipe())


def test_scales_of_channels_need_data(sample_with_cache, tmp_path):
    with pytest.raises(UsageError, match=r"come from data: give calibration data, or set granularity: token"):
        onnxq.quantize(sample_with_cache("plain"), recipe("int8", "channel"), output=tmp_path / "m.onnx")


def test_a_model_without_a_cache_is_refused(tmp_path):
    with pytest.raises(UsageError, match="the recipe quantizes the cache, and the model has none"):
        onnxq.quantize(CODE_LM / "model.onnx", recipe(), output=tmp_path / "m.onnx")


def test_a_model_whose_cache_alone_is_quantized_is_no_copy(sample_with_cache, tmp_path):
    changed = onnxq.quantize(sample_with_cache("plain"), recipe(), output=tmp_path / "changed.onnx")
    same = onnxq.quantize(sample_with_cache("plain"), "none", output=tmp_path / "same.onnx")
    assert (changed.is_copy, same.is_copy) == (False, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cache: {key: {format: uint4}}", "signed integers and minifloats, not uint4"),
        ("cache: {key: {format: int9}}", "no format 'int9'"),
        ("cache: {keys: {format: int8}}", "keys"),
        ("cache: {value: {granularity: group}}", "granularity"),
    ],
)
def test_mistakes_in_a_recipe_are_named(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text)
