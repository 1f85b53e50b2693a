import json
import socket
import sys

import numpy as np
import pytest

import onnxq
from onnxq.errors import MissingExtraError, ModelError, OutputError, UsageError
from onnxq.exporters import surroundings
from onnxq.exporters.folder import export_folder
from onnxq.exporters.task import task_of
from onnxq.model.load import load
from onnxq.runtime.generate import Generator

# Exporters and what they use warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def torch():
    pytest.importorskip("transformers", reason="transformers is not installed (the extra 'export')")
    return pytest.importorskip("torch", reason="PyTorch is not installed (the extra 'export')")


@pytest.fixture
def optimum(torch):
    return pytest.importorskip("optimum.exporters.onnx", reason="optimum-onnx is not installed (the extra 'export')")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def expected_scores(torch, folder, sequences):
    """Of the PyTorch model, [batch, vocabulary] after each sequence of one length."""
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(sequences)).logits[:, -1].numpy()


def check_decoder(torch, folder, model):
    """Prompts and steps behind the cache score as PyTorch does, and FP6 and INT4 nearly so."""
    prompts, after = [[3, 4, 5, 6], [9, 8, 7, 6]], [11, 12]
    found = {}
    for recipe in (None, "fp6", "int4"):
        path = model
        if recipe:
            path = model.with_name(f"{recipe}.onnx")
            assert onnxq.quantize(model, recipe, output=path).quantized
        with Generator(path, threads=1) as generator:
            assert generator.has_cache
            scorer = generator._scorer(8)
            found[recipe] = [scorer.scores([[*each, *after[:step]] for each in prompts]) for step in range(3)]
    for step in range(3):
        reference = expected_scores(torch, folder, [[*each, *after[:step]] for each in prompts])
        reference = reference[:, : found[None][step].shape[1]]
        np.testing.assert_allclose(found[None][step], reference, atol=1e-5)
        for recipe, least_db in (("fp6", 20), ("int4", 10)):
            noise = found[recipe][step] - reference
            assert 10 * np.log10((reference**2).sum() / (noise**2).sum()) > least_db, recipe


def random_inputs(path):
    """Eight samples: dimensions of one name are of one size."""
    sizes = {"batch_size": 8, "num_channels": 3, "height": 16, "width": 16}
    rng, made = np.random.default_rng(0), {}
    for each in onnxq.session(path).get_inputs():
        shape = [dim if isinstance(dim, int) else sizes.get(dim, 6) for dim in each.shape]
        if each.type == "tensor(int64)":
            most = 2 if each.name == "token_type_ids" else 50
            made[each.name] = np.ones(shape, np.int64) if "mask" in each.name else rng.integers(most, size=shape)
        else:
            made[each.name] = rng.standard_normal(shape, np.float32)
    return made


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "phi", "gpt2"])
def test_decoders_leave_optimum_with_a_cache(architecture, optimum, torch, tiny, tmp_path, no_network):
    made = export_folder(tiny(architecture), tmp_path / "out", route="optimum")
    assert (made.task, made.route) == ("text-generation-with-past", "optimum")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    check_decoder(torch, tiny(architecture), tmp_path / "out" / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_decoders_leave_pytorch_with_a_cache(architecture, torch, tiny, tmp_path, no_network):
    made = export_folder(tiny(architecture), tmp_path / "out", route="torch")
    assert made.models == (tmp_path / "out" / "model.onnx",)
    assert b"site-packages" not in made.models[0].read_bytes()
    check_decoder(torch, tiny(architecture), made.models[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("bert", "AutoModelForSequenceClassification"), ("vit", "AutoModelForImageClassification")],
)
def test_encoders_leave_pytorch(architecture, kind, torch, tiny, tmp_path, no_network):
    import transformers

    made = export_folder(tiny(architecture), tmp_path / "out", route="torch")
    (model,), rng = made.models, np.random.default_rng(0)
    reference = getattr(transformers, kind).from_pretrained(tiny(architecture)).eval()
    if architecture == "bert":
        ids = rng.integers(3, 30, (3, 7))
        feeds = {"input_ids": ids, "attention_mask": np.where(np.arange(7) < [[7], [5], [3]], 1, 0)}
    else:
        config = reference.config
        shape = (3, config.num_channels, config.image_size, config.image_size)
        feeds = {"pixel_values": rng.standard_normal(shape).astype(np.float32)}
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(each) for name, each in feeds.items()}).logits.numpy()
    np.testing.assert_allclose(onnxq.session(model).run(None, feeds)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "task", "models"),
    [
        ("bert", "feature-extraction", {"model"}),
        ("bert", None, {"model"}),
        ("vit", None, {"model"}),
        ("t5", None, {"encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged"}),
        ("whisper", None, {"encoder_model", "decoder_model", "decoder_with_past_model", "decoder_model_merged"}),
    ],
)
def test_encoders_and_pairs_are_exported_quantized_and_close(
    architecture, task, models, optimum, tiny, tmp_path, no_network
):
    made = export_folder(tiny(architecture), tmp_path / "out", task=task)
    assert {path.stem for path in made.models} <= models
    assert {path.stem for path in made.models} >= models - {"decoder_with_past_model", "decoder_model_merged"}
    for path in made.models:
        if path.stem == "decoder_model_merged":
            continue
        for recipe, least_db in (("fp6", 20), ("int4", 8)):
            small = tmp_path / f"{path.stem}-{recipe}.onnx"
            report = onnxq.quantize(path, recipe, output=small)
            assert len(report.quantized) >= 6, report.reasons
            found = onnxq.compare(path, small, data=random_inputs(path), per_layer=False, batch=8)
            assert found.outputs[0].sqnr_db > least_db, recipe


def test_the_dtype_is_that_of_weights_and_inputs(optimum, tiny, tmp_path, no_network):
    made = export_folder(tiny("llama"), tmp_path / "out", dtype="fp16")
    model = load(made.models[0])
    assert str(model.ir.graph.inputs[-1].dtype) == "FLOAT16"
    with pytest.raises(UsageError, match="valid: fp32, fp16"):
        export_folder(tiny("llama"), tmp_path / "other", dtype="fp8")


def test_a_task_that_there_is_not_is_named(optimum, tiny, tmp_path):
    with pytest.raises(UsageError, match=r"no task 'image-classification' for 'llama': .*text-generation-with-past"):
        export_folder(tiny("llama"), tmp_path / "out", task="image-classification")
    with pytest.raises(UsageError, match="no task 'translation' without optimum"):
        export_folder(tiny("llama"), tmp_path / "out", task="translation", route="torch")
    assert list(tmp_path.iterdir()) == []


def test_a_broken_folder_leaves_nothing_behind(optimum, tiny, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match="optimum cannot export"):
        export_folder(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_an_output_that_exists_stays_unless_forced(optimum, tiny, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists; pass --force"):
        export_folder(tiny("bert"), out)
    assert (out / "mine.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="route is 'onnx'; valid: optimum, torch"):
        export_folder(tiny("bert"), tmp_path / "new", route="onnx")
    with pytest.raises(OutputError, match="holds other things than an export, which would be lost"):
        export_folder(tiny("bert"), out, force=True)
    assert (out / "mine.txt").read_text() == "mine"
    (out / "mine.txt").unlink()
    export_folder(tiny("bert"), out, force=True)
    (out / "fp6.onnx").touch()
    export_folder(tiny("bert"), out, force=True)
    assert (out / "model.onnx").is_file()
    assert not (out / "fp6.onnx").exists()
    with pytest.raises(OutputError, match="holds the model itself"):
        export_folder(out, out, force=True)


def config_of(folder, **values):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaModel"]} | values))
    return folder


def test_code_in_the_folder_is_not_run_unasked(tmp_path):
    folder = config_of(tmp_path / "own", auto_map={"AutoModel": "modeling.Own"})
    with pytest.raises(UsageError, match=r"Python code of its own.*--trust-remote-code"):
        export_folder(folder, tmp_path / "out")


def test_a_name_on_the_hub_is_not_looked_up(tmp_path, no_network):
    with pytest.raises(ModelError, match="no folder: download the model first"):
        export_folder("meta-llama/Llama-3.2-1B", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        export_folder(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize(("missing", "asked"), [("torch", None), ("optimum.exporters.onnx", "optimum")])
def test_what_is_not_installed_is_named(missing, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(surroundings, "is_installed", lambda package: package != missing)
    with pytest.raises(MissingExtraError, match=rf"'{missing}', which is not installed: pip install 'onnxq\[export\]'"):
        export_folder(config_of(tmp_path / "model"), tmp_path / "out", route=asked)


@pytest.mark.parametrize(
    ("architecture", "kind", "task"),
    [
        ("LlamaForCausalLM", "llama", "text-generation-with-past"),
        ("GPT2LMHeadModel", "gpt2", "text-generation-with-past"),
        ("BertForSequenceClassification", "bert", "text-classification"),
        ("ViTForImageClassification", "vit", "image-classification"),
        ("T5ForConditionalGeneration", "t5", "text2text-generation-with-past"),
        ("WhisperForConditionalGeneration", "whisper", "automatic-speech-recognition-with-past"),
        ("BertModel", "bert", "feature-extraction"),
    ],
)
def test_the_task_follows_from_the_architecture(architecture, kind, task):
    assert task_of({"architectures": [architecture], "model_type": kind}) == task


def test_an_architecture_that_says_nothing_needs_a_task():
    with pytest.raises(UsageError, match="what 'Odd' is for: give --task"):
        task_of({"architectures": ["Odd"], "model_type": "odd"})


def test_an_architecture_of_another_kind_is_told_what_pytorch_is_asked_for(torch, tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1)).save_pretrained(folder)
    with pytest.raises(ModelError, match="has no 'num_attention_heads': --via torch knows decoders whose cache"):
        export_folder(folder, tmp_path / "out", route="torch")
    assert not (tmp_path / "out").exists()


def test_what_exporters_print_is_not_seen(capfd):
    with surroundings.quiet():
        sys.stderr.write("a graph of a thousand lines")
    assert capfd.readouterr() == ("", "")
