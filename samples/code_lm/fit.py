"""The training loop: random crops of the train stream, AdamW, a cosine schedule over the minutes or steps given."""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from model import CodeLM, Config
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

CONTEXT = 512


@dataclass(frozen=True)
class Schedule:
    max_minutes: float
    max_steps: int
    batch: int = 64
    learning_rate: float = 4e-3
    warmup_steps: int = 300
    evaluate_every: int = 500
    compile: bool = False
    seed: int = 0


def crops(stream: Tensor, count: int) -> Tensor:
    """`count` random runs of CONTEXT + 1 tokens: [count, CONTEXT + 1] int64."""
    starts = torch.randint(stream.numel() - CONTEXT, (count, 1), device=stream.device)
    return stream[starts + torch.arange(CONTEXT + 1, device=stream.device)]


def loss_of(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats; tokens [batch, sequence + 1]."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.device.type == "cuda"):
        logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: torch.nn.Module, stream: Tensor) -> float:
    """Mean loss over non-overlapping windows of the stream."""
    model.eval()
    windows = stream[: stream.numel() // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    losses = [loss_of(model, batch).item() * len(batch) for batch in windows.split(32)]
    model.train()
    return sum(losses) / len(windows)


def fit(sample: Path, cache: Path, out: Path, config: Config, schedule: Schedule) -> None:
    """Train on `cache`/train.npy; write the checkpoint with the lowest calibration loss, in float16, to `out`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(schedule.seed)
    torch.set_float32_matmul_precision("high")
    train = torch.from_numpy(np.load(cache / "train.npy").astype(np.int64)).to(device)
    validation = torch.from_numpy(np.load(sample / "calibration.npy").astype(np.int64)).to(device)
    model = CodeLM(config).to(device)
    step_model = torch.compile(model) if schedule.compile else model
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
    out.mkdir(parents=True, exist_ok=True)
    best, start, step, progress = math.inf, time.monotonic(), 0, 0.0
    while progress < 1:
        seconds = time.monotonic() - start
        progress = min(1.0, max(step / schedule.max_steps, seconds / 60 / schedule.max_minutes))
        rate = schedule.learning_rate * min(1.0, (step + 1) / schedule.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of(step_model, crops(train, schedule.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % schedule.evaluate_every == 0 or progress >= 1:
            validation_loss = evaluate(model, validation)
            epochs = step * schedule.batch * CONTEXT / train.numel()
            print(
                f"step {step} epochs {epochs:.1f} seconds {seconds:.0f} train {loss.item():.4f} "
                f"calibration {validation_loss:.4f} dropout {config.dropout}",
                flush=True,
            )
            if validation_loss < best:
                best = validation_loss
                save(model, out)
    print(f"best calibration loss {best:.4f}", flush=True)


def save(model: CodeLM, out: Path) -> None:
    save_file(
        {name: value.half().contiguous() for name, value in model.state_dict().items()}, out / "model.safetensors"
    )
    (out / "config.json").write_text(json.dumps(asdict(model.config), indent=2) + "\n")


def load(checkpoint: Path) -> CodeLM:
    """The trained model in float32, its weights float16 values, dropout off."""
    config = replace(Config(**json.loads((checkpoint / "config.json").read_text())), dropout=0.0)
    model = CodeLM(config)
    model.load_state_dict({k: v.float() for k, v in load_file(checkpoint / "model.safetensors").items()})
    return model.eval()
