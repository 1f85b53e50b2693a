"""What a Hugging Face folder is for, by the name of its architecture; tasks are called as optimum calls them."""

import json
from pathlib import Path
from typing import Any

from onnxq.errors import ModelError, UsageError

# How the name of an architecture ends, the longer endings first: LlamaForCausalLM, BertModel.
_ENDINGS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation-with-past",
    "LMHeadModel": "text-generation-with-past",
    "Model": "feature-extraction",
}


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder.

    Raises:
        ModelError: there is no such folder or file, or it is no JSON object.
    """
    if not folder.is_dir():
        raise ModelError(f"'{folder}' is no folder: download the model first, onnxq reaches no network")
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"'{folder}' is no Hugging Face model: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(f"'{path}' names no model_type: it is no config.json of a Hugging Face model")
    return config


def task_of(config: dict[str, Any]) -> str:
    """The task that the architecture is made for; a UsageError where it does not say."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name.endswith("ForConditionalGeneration"):
        speaks = config["model_type"] in ("whisper", "speech_to_text")
        return "automatic-speech-recognition-with-past" if speaks else "text2text-generation-with-past"
    for ending, task in _ENDINGS.items():
        if name.endswith(ending):
            return task
    raise UsageError(f"config.json does not say what '{name or config['model_type']}' is for: give --task")
