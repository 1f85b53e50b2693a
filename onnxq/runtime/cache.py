"""The cache of keys and values that a language model carries from run to run, on the device where it runs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.runtime.inputs import Input, is_past
from onnxq.runtime.session import CUDA, run_bound

if TYPE_CHECKING:
    import onnxruntime

Feed = Mapping[str, NDArray[Any]]

# The entry `gpu_graph_id` of a run that onnxruntime should not capture.
_NOT_CAPTURED = "-1"
# A session replays what it captured under a number whatever is bound: each cache needs a number of its own.
_graph_numbers = itertools.count(1)


@dataclass(frozen=True)
class Carried:
    """One tensor of the cache, [batch, heads, tokens, size]: an input, and the output that follows it in the next run.

    Keys, values, and where the cache is quantized their scales.
    """

    past: Input
    present: str

    def shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        """The shape for so many tokens."""
        return batch, self.past.fixed(1) or 0, tokens, self.past.fixed(3) or 0


def carried(inputs: Sequence[Input], outputs: Sequence[str]) -> tuple[Carried, ...]:
    """The cache of a model, by the names that exporters give: `past_key_values.0.key` and `present.0.key`.

    Returns:
        One entry a tensor; none where the model takes no past.

    Raises:
        DataError: A past has no output that follows it, or its heads or their size are open; or the model is the
            decoder of an encoder-decoder model, as optimum exports it.
    """
    cached = [*(each.name for each in inputs if is_past(each.name)), *(n for n in outputs if n.startswith("present"))]
    if (of_encoder := next((name for name in cached if ".encoder." in name), None)) is not None:
        raise DataError(
            f"'{of_encoder}' holds keys or values of an encoder: the caches of encoder-decoder models can be neither "
            "quantized nor carried from run to run; their weights can be quantized, by a recipe without 'cache'"
        )
    found = []
    for each in inputs:
        if not is_past(each.name):
            continue
        followers = (each.name.replace("past_key_values", "present", 1), each.name.replace("past", "present", 1))
        present = next((name for name in followers if name in outputs), None)
        if present is None:
            raise DataError(f"input {each} has no output that follows it ('{followers[0]}'): export the model again")
        if len(each.shape) != 4 or each.fixed(1) is None or each.fixed(3) is None:
            raise DataError(f"input {each} is no cache of [batch, heads, tokens, size] with fixed heads and size")
        found.append(Carried(each, present))
    return tuple(found)


class Cache:
    """The tensors of a cache, bound from one run to the next without a copy to the host."""

    def __init__(
        self,
        opened: "onnxruntime.InferenceSession",
        tensors: Sequence[Carried],
        batch: int,
        *,
        tokens: int = 0,
        in_place: bool = False,
        shared_with: "Cache | None" = None,
    ) -> None:
        """A cache of zeros.

        Args:
            opened: The session that runs.
            tensors: Of the model.
            batch: Sequences.
            tokens: What it holds at first.
            in_place: Its tensors are buffers that runs write into; else each run gives a longer one.
            shared_with: A cache of another session, of the same shapes, whose buffers it writes into.
        """
        self._opened, self._tensors, self._in_place = opened, tensors, in_place
        self._device = "cuda" if opened.get_providers()[0] == CUDA else "cpu"
        self._values = self._zeros(batch, tokens) if shared_with is None else shared_with.values
        self._captured: _Captured | None = None

    @property
    def values(self) -> list[Any]:
        """Its tensors now, OrtValues on the device."""
        return list(self._values)

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensors take now."""
        return sum(value.tensor_size_in_bytes() for value in self._values)

    def run(self, output: str, feed: Feed) -> Any:
        """Run on new tokens, and let what comes out be the past of the next run.

        Returns:
            The output called `output`, an OrtValue on the device.
        """
        binding = self._opened.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(output, self._device)
        self._bind(binding)
        run_bound(self._opened, binding, feed, _NOT_CAPTURED if self._device == "cuda" else None)
        made = binding.get_outputs()
        if not self._in_place:
            self._values = made[1:]
        return made[0]

    def replay(self, output: str, feed: Feed, vocabulary: int) -> Any:
        """As `run`, in a session that captures CUDA graphs: shapes and addresses are those of the first call."""
        if self._captured is None:
            binding = self._opened.io_binding()
            inputs = {name: self._placed(array) for name, array in feed.items()}
            for name, value in inputs.items():
                binding.bind_ortvalue_input(name, value)
            scores = self._placed(
                np.zeros((len(next(iter(feed.values()))), 1, vocabulary), self._tensors[0].past.dtype)
            )
            binding.bind_ortvalue_output(output, scores)
            self._bind(binding)
            self._captured = _Captured(binding, inputs, scores, str(next(_graph_numbers)))
        for name, array in feed.items():
            self._captured.inputs[name].update_inplace(array)
        run_bound(self._opened, self._captured.binding, feed, self._captured.graph)
        return self._captured.output

    def _bind(self, binding: Any) -> None:
        for each, value in zip(self._tensors, self._values, strict=True):
            binding.bind_ortvalue_input(each.past.name, value)
            if self._in_place:
                binding.bind_ortvalue_output(each.present, value)
            else:
                binding.bind_output(each.present, self._device)

    def _zeros(self, batch: int, tokens: int) -> list[Any]:
        kinds = [(each.shape(batch, tokens), each.past.dtype) for each in self._tensors]
        if self._device == "cpu":
            return [self._placed(np.zeros(*kind)) for kind in kinds]
        # What is copied to the device is made once: layers are alike, and a cache may be larger than the host's memory.
        arrays = {kind: np.zeros(*kind) for kind in kinds}
        return [self._placed(arrays[kind]) for kind in kinds]

    def _placed(self, array: NDArray[Any]) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)


@dataclass(frozen=True)
class _Captured:
    """What a captured CUDA graph reads and writes at fixed addresses, and its number in the session."""

    binding: Any
    inputs: Mapping[str, Any]
    output: Any
    graph: str
