"""Write a checkpoint as model.onnx, compare it with PyTorch and measure its held-out perplexity."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from data import END_OF_TEXT
from fit import load
from model import CodeLM
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

WINDOW = 256
SUBSET_WINDOWS = 16
LARGEST_DIFFERENCE = 1e-4
SMALLEST_HALVED = 4096  # elements; smaller tensors stay float32


def to_onnx(model: CodeLM) -> onnx.ModelProto:
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 16, dtype=torch.int64),),
        input_names=["input_ids"],
        output_names=["logits"],
        dynamic_shapes=(shape,),
        dynamo=True,
    )
    proto = program.model_proto
    strip_trace(proto)
    return proto


def strip_trace(proto: onnx.ModelProto) -> None:
    """Drop what the exporter records about the Python source it came from: file paths and stack traces."""
    del proto.metadata_props[:]
    graph = proto.graph
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        kept = [p for p in part.metadata_props if p.key == "namespace"]
        del part.metadata_props[:]
        part.metadata_props.extend(kept)


def store_as_float16(proto: onnx.ModelProto) -> None:
    """Store each large float32 initializer as float16 and one Cast, which keeps the graph's arithmetic in float32.

    The values are float16 numbers already, so nothing is rounded. onnxruntime folds the Casts when it loads the file.
    """
    graph = proto.graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALLEST_HALVED:
            continue
        name = tensor.name
        half = values.astype(np.float16)
        assert np.array_equal(half.astype(np.float32), values), f"{name} holds values that float16 does not"
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}_cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def window_losses(session: onnxruntime.InferenceSession, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Next-token negative log-likelihood in nats, [windows, WINDOW - 1], from windows [windows, WINDOW]."""
    losses = []
    for batch in np.array_split(windows, max(1, len(windows) // 8)):
        logits = session.run(["logits"], {"input_ids": batch})[0][:, :-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        log_normaliser = np.log(np.exp(logits).sum(-1))
        chosen = np.take_along_axis(logits, batch[:, 1:, None], -1)[..., 0]
        losses.append(log_normaliser - chosen)
    return np.concatenate(losses)


def held_out_windows(sample: Path) -> NDArray[np.int64]:
    stream = np.load(sample / "heldout.npy").astype(np.int64)
    return stream[: stream.size // WINDOW * WINDOW].reshape(-1, WINDOW)


def largest_difference(session: onnxruntime.InferenceSession, model: CodeLM, windows: NDArray[np.int64]) -> float:
    differences = []
    for batch in (windows[:2], windows[:1, :100], windows[:2].reshape(1, -1)):
        with torch.no_grad():
            expected = model(torch.from_numpy(batch)).numpy()
        differences.append(float(np.abs(session.run(["logits"], {"input_ids": batch})[0] - expected).max()))
    return max(differences)


def continue_text(
    session: onnxruntime.InferenceSession, tokenizer: Tokenizer, prompt: str, temperature: float, length: int = 120
) -> str:
    """Sample `length` tokens after `prompt`; temperature 0 takes the most likely token each time."""
    generator = np.random.default_rng(0)
    ids = [tokenizer.token_to_id(END_OF_TEXT), *tokenizer.encode(prompt).ids]
    for _ in range(length):
        logits = session.run(["logits"], {"input_ids": np.array([ids], np.int64)})[0][0, -1].astype(np.float64)
        if temperature == 0:
            ids.append(int(logits.argmax()))
            continue
        weights = np.exp((logits - logits.max()) / temperature)
        ids.append(int(generator.choice(weights.size, p=weights / weights.sum())))
    return tokenizer.decode(ids[1:])


def export(checkpoint: Path, sample: Path) -> None:
    """Write `sample`/model.onnx and `sample`/float.json, and print continuations of a few prompts."""
    model = load(checkpoint)
    proto = to_onnx(model)
    store_as_float16(proto)
    onnx.checker.check_model(proto, full_check=True)
    path = sample / "model.onnx"
    onnx.save(proto, path)
    session = session_of(path)
    windows = held_out_windows(sample)
    difference = largest_difference(session, model, windows)
    assert difference <= LARGEST_DIFFERENCE, f"onnxruntime differs from PyTorch by {difference:.2g}"
    losses = window_losses(session, windows)
    record = {
        "model": path.name,
        "size_bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "window": WINDOW,
        "windows": len(windows),
        "tokens": int(windows.size),
        "predictions": int(losses.size),
        "nll": float(losses.mean()),
        "perplexity": float(np.exp(losses.mean())),
        "subset_windows": SUBSET_WINDOWS,
        "subset_nll": float(losses[:SUBSET_WINDOWS].mean()),
        "subset_perplexity": float(np.exp(losses[:SUBSET_WINDOWS].mean())),
        "largest_difference_from_torch": difference,
        "provider": "CPUExecutionProvider",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "date": datetime.now(UTC).date().isoformat(),
    }
    (sample / "float.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    tokenizer = Tokenizer.from_file(str(sample / "tokenizer.json"))
    for prompt in ("def ", "class ", "import "):
        for temperature in (0, 0.7):
            print(f"--- {prompt!r} at temperature {temperature}")
            print(continue_text(session, tokenizer, prompt, temperature))
