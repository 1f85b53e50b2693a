"""`Decoder`: an open language model with a cache, of which single steps are timed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxq
from onnxq.model.attention import grouped_attentions, table_rows
from onnxq.model.load import load
from onnxq.runtime.cache import Cache, Carried, carried
from onnxq.runtime.inputs import inputs_of, is_past

_WARM_UP = 2


@dataclass(frozen=True)
class Opening:
    """How models are opened.

    Attributes:
        providers: Of onnxruntime; by its first letters `cuda` or `cpu`.
        threads: Within one operator.
        accuracy_level: Of onnxruntime's own low-bit kernels.
        cuda_graph: Steps are captured and replayed.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: int | None = 1
    accuracy_level: int | None = None
    cuda_graph: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether the first provider is CUDA."""
        return self.providers[0] == "cuda"


class Decoder:
    """An open model that decodes.

    Attributes:
        name: What it is called in tables.
        file_bytes: Of the model and its external data.
        load_seconds: Until it could run.
        device_bytes: Taken on the GPU when it had run once, without a cache worth mentioning.
    """

    def __init__(self, name: str, path: Path, opening: Opening, config: dict[str, str] | None = None) -> None:
        """Open a model, with further entries of its session's configuration."""
        before, start = _device_bytes(opening), time.perf_counter()
        loaded = load(path)
        self.name, self.file_bytes, self.opening = name, loaded.size_bytes, opening
        attentions = grouped_attentions(loaded.ir.graph)
        self.in_place, self._longest = bool(attentions), table_rows(attentions[0]) if attentions else None
        self._session = onnxq.session(
            path,
            providers=opening.providers,
            threads=opening.threads,
            accuracy_level=opening.accuracy_level,
            options=_options(config or {}),
            cuda_graph=opening.cuda_graph,
        )
        self.load_seconds = time.perf_counter() - start
        inputs = inputs_of(self._session, loaded)
        self._inputs = [each for each in inputs if not is_past(each.name)]
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        self._tensors: tuple[Carried, ...] = carried(inputs, list(outputs))
        if not self._tensors:
            raise SystemExit(f"{path} has no cache (past_key_values.N.key): export it with one")
        self._vocabulary = int(outputs["logits"][2])
        self.begin(1, 1, 1)
        self.step()
        self.device_bytes = _device_bytes(opening) - before

    def begin(self, batch: int, context: int, steps: int, like: "Decoder | None" = None) -> None:
        """Take a cache that holds so many tokens, with room for so many steps; that of `like`, if it has the same.

        On a GPU it is filled with random numbers: arithmetic on zeros takes less power, and so less time.
        """
        capacity = context + steps + _WARM_UP
        if self._longest is not None and capacity > self._longest:
            raise SystemExit(f"{self.name} takes {self._longest} tokens, {capacity} are asked for")
        self._batch, self._context, self._capacity = batch, context, capacity
        tokens = capacity if self.in_place else context
        shared = like._cache if like is not None and like is not self and self.in_place else None
        self._cache = Cache(
            self._session, self._tensors, batch, tokens=tokens, in_place=self.in_place, shared_with=shared
        )
        if shared is None and self.opening.on_gpu:
            _randomize(self._cache.values)
        self._done = 0

    def times(self, steps: int) -> list[float]:
        """Seconds of so many steps, after a few that are not counted; a cache that stays in place is begun again."""
        if self.in_place:
            self._done = 0
        else:
            self.begin(self._batch, self._context, steps)
        return [self.step() for _ in range(steps + _WARM_UP)][_WARM_UP:]

    def step(self) -> float:
        """Read one token a sequence, and give the seconds it took."""
        feed = dict(self._feed(self._context + self._done + 1))
        self._done += 1
        start = time.perf_counter()
        if self.opening.cuda_graph:
            self._cache.replay("logits", feed, self._vocabulary)
        else:
            self._cache.run("logits", feed)
        return time.perf_counter() - start

    def _feed(self, tokens: int) -> Iterator[tuple[str, np.ndarray]]:
        """The inputs of a step that reads the last of so many tokens."""
        mask = np.zeros((self._batch, self._capacity if self.opening.cuda_graph else tokens))
        mask[:, :tokens] = 1
        made = {
            "input_ids": np.full((self._batch, 1), tokens % 1000),
            "attention_mask": mask,
            "position_ids": np.full((self._batch, 1), tokens - 1),
        }
        for each in self._inputs:
            yield each.name, made[each.name].astype(each.dtype)


def _options(config: dict[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _device_bytes(opening: Opening) -> int:
    """Bytes that are taken on the GPU; 0 on the CPU."""
    if not opening.on_gpu:
        return 0
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)


def _randomize(values: list[Any]) -> None:
    """Fill float16 or float32 tensors on the GPU with Gaussian numbers."""
    import cupy

    drawn: dict[Any, Any] = {}
    for value in values:
        dtype = np.float16 if value.data_type() == "tensor(float16)" else np.float32
        count = int(np.prod(value.shape()))
        memory = cupy.cuda.UnownedMemory(value.data_ptr(), count * np.dtype(dtype).itemsize, value)
        flat = cupy.ndarray((count,), dtype, cupy.cuda.MemoryPointer(memory, 0))
        if dtype not in drawn:
            drawn[dtype] = cupy.random.standard_normal(1 << 24, dtype=cupy.float32).astype(dtype)
        for start in range(0, count, 1 << 24):
            part = flat[start : start + (1 << 24)]
            part[:] = drawn[dtype][: part.size]
    cupy.cuda.runtime.deviceSynchronize()
    cupy.get_default_memory_pool().free_all_blocks()
