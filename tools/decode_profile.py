"""Where the time of a decoding step goes on the GPU: CUPTI's record of all kernels, through PyTorch's profiler."""

import json
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from decoding import Decoder

# The first that matches a kernel's name says what it belongs to. Attention comes first: its kernels name CUTLASS too.
KINDS = (
    ("attention", r"flash|fmha|xqa|attention|rotary|kvcache|concat.?new|append|seqlen|past|present"),
    ("matmul", r"gemm|gemv|nvjet|matmul|splitk|cutlass|cublas|dequantize|weight_only|fpa_?intb"),
)
REST = "rest"
_NOT_OF_THE_STEP = "Memcpy HtoD"  # token ids and mask, on their way before it


@dataclass
class Profile:
    """Microseconds of a step.

    Attributes:
        matmul: Products with weights.
        attention: What the attention operator runs.
        rest: Norms, activations, the embedding, and all other kernels.
        gaps: When none runs, from the first to the last.
        outside: Of the whole step, before the first and after the last: feeding it, launching it, waiting for it.
        kernels: Of each kernel its name with its grid, kind, runs and microseconds, the longest first.
    """

    matmul: float = 0.0
    attention: float = 0.0
    rest: float = 0.0
    gaps: float = 0.0
    outside: float = 0.0
    kernels: list[tuple[str, str, float, float]] = field(default_factory=list)


def profile(decoder: Decoder, milliseconds: float, steps: int = 8) -> Profile:
    """Record steps of a decoder that has begun, and whose step was measured to take so long.

    Where two kernels overlap, the time belongs to the one that started first.
    """
    events = _device_events(decoder, steps)
    if len(events) % steps:
        print(f"{decoder.name}: {len(events)} kernels in {steps} steps; is each step the same?")
    count = len(events) // steps
    found, times, runs = Profile(), defaultdict[str, float](float), defaultdict[str, int](int)
    spans, gaps = [], []
    for step in (events[number * count : (number + 1) * count] for number in range(steps)):
        free, idle = step[0]["ts"], 0.0
        for event in step:
            start, end = event["ts"], event["ts"] + event["dur"]
            idle += max(0.0, start - free)
            name = f"{event['name'][:160]} {event['args'].get('grid', '')}"
            times[name] += max(0.0, end - max(start, free))
            runs[name] += 1
            free = max(free, end)
        spans.append(free - step[0]["ts"])
        gaps.append(idle)
    for name, total in sorted(times.items(), key=lambda item: -item[1]):
        kind = kind_of(name)
        setattr(found, kind, getattr(found, kind) + total / steps)
        found.kernels.append((name, kind, runs[name] / steps, total / steps))
    found.gaps = median(gaps)
    found.outside = max(0.0, 1000 * milliseconds - median(spans))
    return found


def kind_of(name: str) -> str:
    """What a kernel belongs to."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), REST)


def _device_events(decoder: Decoder, steps: int) -> list[dict[str, Any]]:
    """What ran on the GPU in so many steps, in the order in which it started."""
    from torch.profiler import ProfilerActivity, profile

    decoder.times(1)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(steps):
                decoder.step()
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    mine = [each for each in events if each.get("cat") in kinds and not each["name"].startswith(_NOT_OF_THE_STEP)]
    return sorted(mine, key=lambda each: each["ts"])
