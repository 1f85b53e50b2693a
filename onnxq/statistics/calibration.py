"""`Calibration`: data to run a model on, in any of the forms in which people have it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.errors import DataError, SessionError, UsageError
from onnxq.model.attention import past_sizes
from onnxq.model.load import Model
from onnxq.runtime.inputs import Input, closed
from onnxq.statistics.batches import Batches, OfFeeds, OfIterable
from onnxq.statistics.data import Array, Source
from onnxq.statistics.feeds import array_feeds, feeds_for
from onnxq.statistics.folder import read_folder
from onnxq.statistics.synthetic import SYNTHETIC, synthetic

CalibrationData = Source | Iterable[Mapping[str, Array]]

# Types that both onnxruntime and numpy have; those of ml_dtypes are of kind V.
_KINDS = "biuf"


@dataclass(frozen=True)
class Calibration:
    """Data to run a model on.

    Attributes:
        data: A `.npz` file (one array an input, the first axis counts samples), a folder of them, a `.npy` file for a
            model of one input, a `.npy` file of one dimension and integers (a stream of tokens), the same as arrays, an
            iterable of feeds (mappings from inputs to arrays, each run as it is), or `synthetic`.
        sequence: Tokens in a window, for a stream of tokens.
        samples: Windows or samples at most; None for all.
        batch: Samples run at a time; a batch size that the model fixes wins.
        providers: Of onnxruntime.
        cache: A file where statistics are kept for the next run on the same model and data.
        progress: Called with samples run and samples to run; layer by layer, with parts of the model instead.
    """

    data: CalibrationData
    sequence: int = 512
    samples: int | None = 128
    batch: int = 4
    providers: Sequence[str] | None = None
    cache: str | Path | None = None
    progress: Callable[[int, int], None] | None = field(default=None, compare=False)

    @property
    def is_synthetic(self) -> bool:
        """The data is made up."""
        return isinstance(self.data, str) and self.data == SYNTHETIC

    def batches(self, model: Model) -> Batches:
        """The data, cut for a model.

        Raises:
            DataError: It does not fit the model.
            UsageError: A size is not positive.
        """
        inputs, data, sequence = inputs_of_graph(model.ir.graph), self.data, self.sequence
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"samples is {self.samples}; it must be at least 1")
        if self.is_synthetic:
            made, sequence = synthetic(model.ir.graph, inputs, sequence=sequence, samples=self.samples or 128)
            if isinstance(made, dict):
                return OfFeeds(array_feeds(made, inputs, batch=self.batch, limit=self.samples))
            data = made
        if isinstance(data, str | Path) and Path(data).is_dir():
            return OfFeeds(array_feeds(read_folder(Path(data)), inputs, batch=self.batch, limit=self.samples))
        if isinstance(data, str | Path | np.ndarray | Mapping):
            return OfFeeds(feeds_for(data, inputs, sequence=sequence, batch=self.batch, limit=self.samples))
        return OfIterable(data, inputs, self.samples)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While a model runs on the data: where that fails, and the data is made up, it may be the reason."""
        try:
            yield
        except SessionError as error:
            if not self.is_synthetic:
                raise
            raise SessionError(
                f"{error}; this data is synthetic, and sizes that the model leaves open are guesses: give real data"
            ) from error

    def digest(self, model: Model) -> str:
        """A fingerprint of everything that the model is fed.

        Raises:
            UsageError: The data can be gone through only once.
        """
        batches = self.batches(model)
        if batches.once:
            raise UsageError("statistics of an iterator cannot be kept in a cache: give a list of feeds, or arrays")
        total = hashlib.sha256()
        for batch in batches:
            for name, array in batch.inputs.items():
                total.update(f"{name} {array.dtype} {array.shape} {batch.weight}".encode())
                total.update(np.ascontiguousarray(array).data)
        return total.hexdigest()


def inputs_of_graph(graph: ir.Graph) -> tuple[Input, ...]:
    """What a model must be given; a DataError names an input that numpy cannot hold."""
    found, sizes = [], past_sizes(graph)
    for value in graph.inputs:
        if value.name in graph.initializers:
            continue
        dtype = value.dtype.numpy() if value.dtype not in (None, ir.DataType.STRING, ir.DataType.UNDEFINED) else None
        if value.shape is None or dtype is None or dtype.kind not in _KINDS:
            raise DataError(f"input '{value.name}' is a {value.type}, which cannot be fed from numpy arrays")
        dims = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        found.append(Input(str(value.name), dtype, closed(dims, sizes.get(str(value.name)))))
    return tuple(found)
