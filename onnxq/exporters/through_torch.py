"""A Hugging Face folder through PyTorch's own exporter, for a transformers that is newer than optimum allows."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxq.errors import ModelError, UsageError, nearest
from onnxq.exporters.program import Shapes, export

# Beside the weights, what a folder has that its user needs with the ONNX model too.
_COMPANIONS = ("*config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
_BATCH, _SEQUENCE, _PAST = 2, 3, 4
# Of images for a model that takes any.
_PIXELS = 224


@dataclass(frozen=True)
class _Example:
    """What a module is exported with: its inputs in order, names for them, and names for all dimensions."""

    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    shapes: Shapes
    names: tuple[str, ...] = ()


def export_through_torch(
    folder: Path, output: Path, _config: dict[str, Any], task: str, dtype: str, *, trust_remote_code: bool
) -> None:
    """Write model.onnx, configuration and tokenizer into the folder `output`.

    Raises:
        UsageError: there is no such task on this way.
        ModelError: transformers cannot load the folder, or PyTorch cannot export it.
    """
    import torch
    import transformers

    if task not in _TASKS:
        raise UsageError(f"no task '{task}' without optimum: {nearest(task, _TASKS)}")
    kind, example_of, module_of = _TASKS[task]
    try:
        model = getattr(transformers, kind).from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            torch_dtype={"fp32": torch.float32, "fp16": torch.float16}[dtype],
            attn_implementation="eager",
        )
    except Exception as error:
        raise ModelError(f"transformers {transformers.__version__} cannot load '{folder}': {error}") from error
    model = model.eval()
    try:
        example = example_of(model)
    except AttributeError as error:
        raise ModelError(
            f"the configuration of '{folder}' has no '{error.name}': --via torch knows decoders whose cache holds keys "
            "and values, encoders of tokens, and classifiers of images; try --via optimum, or export it yourself "
            "(onnxq.export)"
        ) from error
    output.mkdir()
    with torch.no_grad():
        export(
            module_of(model, tuple(example.inputs)),
            tuple(example.inputs.values()),
            output=output / "model.onnx",
            # One entry, for `*inputs`.
            dynamic_shapes=(_dynamic(example.inputs, example.shapes),),
            input_names=example.names or tuple(example.inputs),
            output_names=example.outputs,
            shapes=example.shapes,
        )
    for pattern in _COMPANIONS:
        for path in folder.glob(pattern):
            shutil.copyfile(path, output / path.name)


def _dynamic(inputs: dict[str, Any], shapes: Shapes) -> tuple[Any, ...]:
    """Every named dimension may vary; PyTorch finds by itself which of them are equal."""
    import torch

    def dims(shape: tuple[str | int, ...]) -> dict[int, Any]:
        return {at: torch.export.Dim.DYNAMIC for at, dim in enumerate(shape) if isinstance(dim, str)}

    pair = dims(("batch", 0, "past_sequence", 0))
    return tuple(
        [(pair, pair) for _ in value] if isinstance(value, list) else dims(shapes[name])
        for name, value in inputs.items()
    )


def _generation(model: Any) -> _Example:
    import torch

    config, ids = model.config, torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers

    def cells() -> Any:
        # The exporter takes a tensor that stands in two places for one input.
        return torch.zeros(_BATCH, heads, _PAST, width, dtype=model.dtype)

    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    past = {f"past_key_values.{part}": ("batch", heads, "past_sequence", width) for part in parts}
    present = {f"present.{part}": ("batch", heads, "total_sequence", width) for part in parts}
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.int64),
        "position_ids": torch.arange(_PAST, _PAST + _SEQUENCE).repeat(_BATCH, 1),
    }
    shapes = {
        "input_ids": ("batch", "sequence"),
        "attention_mask": ("batch", "total_sequence"),
        "position_ids": ("batch", "sequence"),
        "logits": ("batch", "sequence", config.vocab_size),
    }
    return _Example(
        {**inputs, "past": [(cells(), cells()) for _ in range(layers)]},
        ("logits", *present),
        {**shapes, **past, **present},
        (*inputs, *past),
    )


def _tokens(output: str, *dims: str | int) -> Callable[[Any], _Example]:
    def example(_: Any) -> _Example:
        import torch

        ids = torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64)
        pair: tuple[str | int, ...] = ("batch", "sequence")
        return _Example(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            (output,),
            {"input_ids": pair, "attention_mask": pair, **({output: dims} if dims else {})},
        )

    return example


def _image(model: Any) -> _Example:
    import torch

    size, channels = getattr(model.config, "image_size", None), model.config.num_channels
    height, width = (size, size) if size is None or isinstance(size, int) else size
    pixels = torch.zeros(_BATCH, channels, height or _PIXELS, width or _PIXELS, dtype=model.dtype)
    dims = ("batch", channels, height or "height", width or "width")
    return _Example({"pixel_values": pixels}, ("logits",), {"pixel_values": dims})


def _with_past(model: Any, names: Sequence[str]) -> Any:
    """The model with its cache as plain pairs of tensors, which is all that the exporter can see."""
    import torch
    from transformers import DynamicCache

    class WithPast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> tuple[Any, ...]:
            given = dict(zip(names, inputs, strict=True))
            cache = DynamicCache(config=self.model.config)
            for layer, (key, value) in enumerate(given.pop("past")):
                cache.update(key, value, layer)
            made = self.model(**given, past_key_values=cache, use_cache=True)
            layers = made.past_key_values.layers
            return (made.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values)))

    return WithPast()


def _first_output(model: Any, names: Sequence[str]) -> Any:
    """The first output of an encoder of tokens or images, from inputs of these names."""
    import torch

    class FirstOutput(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(names, inputs, strict=True)), return_dict=False)[0]

    return FirstOutput()


_TASKS: dict[str, tuple[str, Callable[[Any], _Example], Callable[[Any, Sequence[str]], Any]]] = {
    "text-generation-with-past": ("AutoModelForCausalLM", _generation, _with_past),
    "feature-extraction": ("AutoModel", _tokens("last_hidden_state"), _first_output),
    "text-classification": ("AutoModelForSequenceClassification", _tokens("logits"), _first_output),
    "token-classification": ("AutoModelForTokenClassification", _tokens("logits"), _first_output),
    "fill-mask": ("AutoModelForMaskedLM", _tokens("logits"), _first_output),
    "image-classification": ("AutoModelForImageClassification", _image, _first_output),
}
