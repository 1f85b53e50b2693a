"""What a session takes, and the usual inputs of a language model made from tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError
from onnxq.model.attention import past_sizes
from onnxq.model.load import Model

if TYPE_CHECKING:
    import onnxruntime

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(bool)": np.bool_,
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class Input:
    """One input a model takes. A dimension that may vary is a name, or None where the model names none."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"'{self.name}' {self.dtype}[{dims}]"

    def fixed(self, axis: int) -> int | None:
        """The size of `axis` if the model fixes it."""
        dim = self.shape[axis]
        return dim if isinstance(dim, int) else None


def inputs_of(opened: "onnxruntime.InferenceSession", model: Model | None = None) -> tuple[Input, ...]:
    """The inputs a session must be given; a DataError names one whose type numpy cannot hold.

    Args:
        opened: the session.
        model: what it runs, to know the size of a past that only the attention in the model gives.
    """
    sizes = {} if model is None else past_sizes(model.ir.graph)
    found = []
    for value in opened.get_inputs():
        if value.type not in _DTYPES:
            raise DataError(f"input '{value.name}' is a {value.type}, which cannot be fed from numpy arrays")
        shape = closed(tuple(value.shape), sizes.get(value.name))
        found.append(Input(value.name, np.dtype(_DTYPES[value.type]), shape))
    return tuple(found)


def closed(shape: tuple[int | str | None, ...], size: int | None) -> tuple[int | str | None, ...]:
    """The shape of an input, its last dimension given where it is the head of a past that the model leaves open."""
    return (*shape[:3], size) if size is not None and len(shape) == 4 and not isinstance(shape[3], int) else shape


def is_past(name: str) -> bool:
    """Whether an input is a part of the cache of keys and values."""
    return name.startswith("past")


def token_input(inputs: Sequence[Input]) -> Input:
    """The input that takes token ids: `input_ids`, or else the only integer input of two dimensions."""
    for candidate in inputs:
        if candidate.name == "input_ids":
            return candidate
    integers = [i for i in inputs if i.dtype.kind in "iu" and len(i.shape) == 2]
    if len(integers) != 1:
        listed = ", ".join(str(i) for i in inputs)
        raise DataError(
            f"no input takes token ids: the model has {listed}; name the right one 'input_ids', or give other data as "
            "an .npz with an array for each input"
        )
    return integers[0]


def token_feed(inputs: Sequence[Input], ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """All inputs of a language model that reads `ids` from an empty past.

    Args:
        inputs: what the model takes.
        ids: [batch, sequence] token ids.

    Raises:
        DataError: the model takes an input that tokens do not determine.
    """
    tokens = token_input(inputs)
    return {i.name: (ids.astype(i.dtype) if i is tokens else _companion(i, *ids.shape)) for i in inputs}


def _companion(wanted: Input, batch: int, length: int) -> NDArray[Any]:
    """An input that goes with tokens, known by the name that exporters give it."""
    name, rank = wanted.name, len(wanted.shape)
    if name == "attention_mask" and rank == 2:
        return np.ones((batch, length), wanted.dtype)
    if name == "position_ids" and rank == 2:
        return np.broadcast_to(np.arange(length, dtype=wanted.dtype), (batch, length)).copy()
    if name == "token_type_ids" and rank == 2:
        return np.zeros((batch, length), wanted.dtype)
    if is_past(name) and rank == 4:
        # [batch, heads, past length, head size]: everything fixed but the batch and the length, which is 0.
        heads, size = wanted.fixed(1), wanted.fixed(3)
        if heads is not None and size is not None and wanted.fixed(2) in (None, 0):
            return np.zeros((batch, heads, 0, size), wanted.dtype)
    raise DataError(f"input {wanted} cannot be made from tokens; give every input as an array in an .npz file")
