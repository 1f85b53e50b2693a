"""Where the bytes of quantized weights go."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir


class Sink(Protocol):
    """Takes tensors one after the other; `model.save.Staging` writes them to the output's data file."""

    def append(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], chunks: Iterable[bytes | np.ndarray]
    ) -> ir.TensorProtocol:
        """Take one tensor's bytes in `raw_data` order, and give a tensor that stands for them."""


class Memory:
    """Keeps everything in memory, for models that are not written."""

    def append(
        self, name: str, dtype: ir.DataType, shape: Sequence[int], chunks: Iterable[bytes | np.ndarray]
    ) -> ir.TensorProtocol:
        """See `Sink.append`."""
        stored = np.frombuffer(
            b"".join(chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in chunks), np.uint8
        )
        if dtype.bitwidth < 8:
            return ir.PackedTensor(stored, dtype, shape=ir.Shape(shape), name=name)
        return ir.Tensor(stored.view(dtype.numpy()).reshape(shape), dtype, name=name)
