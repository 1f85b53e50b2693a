"""One session for a model and all its variants with other numbers in some of its weights."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.model.load import Model
from onnxq.model.overrides import Addend, is_overridable, overridable
from onnxq.model.segment import standing_in
from onnxq.model.sites import Weight
from onnxq.passes.sequential import as_stored
from onnxq.runtime.inputs import Input, inputs_of
from onnxq.runtime.session import run, session

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[Sequence[str], Feed], list[NDArray[Any]]]
"""(outputs, inputs) -> what comes out"""


class Swapping:
    """A model that runs with other weights without being loaded again.

    Attributes:
        inputs: What it must be given.
        load_seconds: How long it took to open; what a variant would cost if it were loaded.
    """

    def __init__(
        self,
        model: Model,
        weights: Sequence[Weight],
        stack: ExitStack,
        *,
        addends: Sequence[Addend] = (),
        outputs: Sequence[str] = (),
        providers: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> None:
        """Open a model.

        Args:
            model: Not changed.
            weights: That may be swapped.
            stack: Keeps what the session is opened from.
            addends: What may be added to values.
            outputs: Values that can be asked for too.
            providers: Of onnxruntime.
            threads: Threads within one operator.
        """
        self._model = model
        self._swapped = [weight for weight in weights if is_overridable(weight, model.ir)]
        self._form = partial(overridable, weights=self._swapped, addends=addends, outputs=outputs)
        self._session = partial(session, providers=providers, threads=threads)
        started = time.perf_counter()
        self._opened = self._session(stack.enter_context(self._form(model)))
        self.load_seconds = time.perf_counter() - started
        self.inputs: tuple[Input, ...] = inputs_of(self._opened)

    @property
    def outputs(self) -> Any:
        """The outputs of the session."""
        return self._opened.get_outputs()

    @contextmanager
    def replaced(self, weights: Sequence[tuple[Weight, NDArray[np.float32]]] = ()) -> Iterator[Run]:
        """The model with other numbers in some weights, each in any shape of as many elements, ordered as it is read.

        Weights in subgraphs and function bodies, and those in a type that numpy lacks, make the model be loaded anew.
        """
        ours = {id(weight) for weight in self._swapped}
        given = {str(each.source.name): as_stored(each, array) for each, array in weights if id(each) in ours}
        others = [(each.tensor, as_stored(each, array)) for each, array in weights if id(each) not in ours]
        with ExitStack() as held:
            opened = self._opened
            if others:
                with standing_in(self._model, others):
                    opened = self._session(held.enter_context(self._form(self._model)))
            yield lambda outputs, feed: run(opened, outputs, {**feed, **given})
