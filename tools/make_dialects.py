"""Tiny models of every dialect that onnxq reads, made offline from a configuration, with random weights.

    python tools/make_dialects.py                     # makes tests/dialects/models again
    python tools/make_dialects.py --only optimum,torch

Needs `pip install 'onnxq[export]'`. The builders `genai` (onnxruntime-genai 0.18) and `mobius` (mobius-onnx 0.1) need
transformers 5, which optimum does not allow: run them in an environment of their own with `--only genai,mobius`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

OUTPUT = Path(__file__).parents[1] / "tests" / "dialects" / "models"
VOCABULARY = 56
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ENCODER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
_SPEECH = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 16,
    "max_source_positions": 1500,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Architecture -> (class of the model, class of its configuration, configuration).
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _DECODER | {"head_dim": 16}),
    "mistral": ("MistralForCausalLM", "MistralConfig", _DECODER),
    "phi": ("PhiForCausalLM", "PhiConfig", _DECODER | {"num_key_value_heads": 2}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_inner": 48, "n_positions": 64,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", _ENCODER | {"vocab_size": VOCABULARY}),
    "vit": ("ViTForImageClassification", "ViTConfig", _ENCODER | {"image_size": 16, "patch_size": 8, "num_labels": 3}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2,
         "relative_attention_num_buckets": 16, "decoder_start_token_id": 0},
    ),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _SPEECH),
}  # fmt: skip


def make_folder(architecture: str, folder: Path) -> Path:
    """A Hugging Face folder of a tiny model with random weights."""
    import torch
    import transformers

    model, config, values = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**values))
    made.eval().save_pretrained(folder)
    if values.get("vocab_size"):
        make_tokenizer(folder)
    return folder


def make_tokenizer(folder: Path) -> None:
    """Words w0 to w54, one a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(VOCABULARY - 1)} | {"<unk>": VOCABULARY - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "w1", "eos_token": "w2", "pad_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def through_onnxq(route: str) -> Callable[[Path, Path], None]:
    """`onnxq export` through one of its exporters."""

    def make(folder: Path, output: Path) -> None:
        from onnxq.exporters.folder import export_folder

        export_folder(folder, output, route=route)  # type: ignore[arg-type]

    return make


def genai(precision: str) -> Callable[[Path, Path], None]:
    """The builder of onnxruntime-genai."""

    def make(folder: Path, output: Path) -> None:
        command = ["-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-o", str(output)]
        subprocess.run([sys.executable, *command, "-p", precision, "-e", "cpu"], check=True)

    return make


def mobius(folder: Path, output: Path) -> None:
    """The builder of mobius-onnx."""
    subprocess.run([sys.executable, "-m", "mobius", "build", "--model", str(folder), str(output)], check=True)


# File -> (architecture, builder); named by dialect first, so that `--only` picks them.
FIXTURES: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "optimum-llama": ("llama", through_onnxq("optimum")),
    "optimum-gpt2": ("gpt2", through_onnxq("optimum")),
    "torch-qwen3": ("qwen3", through_onnxq("torch")),
    "genai-llama": ("llama", genai("fp32")),
    "genai-llama-int4": ("llama", genai("int4")),
    "genai-qwen3": ("qwen3", genai("fp32")),
    "mobius-llama": ("llama", mobius),
}


def embedded(model: Path, output: Path) -> None:
    """One file with its weights inside, without names of the machine it was made on."""
    import onnx

    proto = onnx.load(model)  # noqa: TID251
    graph = proto.graph
    # mobius calls the graph as the folder.
    graph.name = "model"
    del proto.metadata_props[:]
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *proto.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(proto, output)  # noqa: TID251


def main() -> None:
    """Make the fixtures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="optimum,torch,genai,mobius")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    for name, (architecture, make) in FIXTURES.items():
        if name.split("-")[0] not in options.only.split(","):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_folder(architecture, Path(temporary) / "source")
            make(folder, Path(temporary) / "made")
            embedded(Path(temporary) / "made" / "model.onnx", options.output / f"{name}.onnx")
            if name == "genai-llama":
                shutil.copy(Path(temporary) / "made" / "genai_config.json", options.output / "genai_config.json")
                shutil.copy(folder / "tokenizer.json", options.output / "tokenizer.json")
        print(f"{name}: {(options.output / f'{name}.onnx').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
