"""Scores of the next token of a sequence."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError, NonFiniteError
from onnxq.runtime.inputs import inputs_of, token_feed, token_input
from onnxq.runtime.session import run

if TYPE_CHECKING:
    import onnxruntime


class Scorer:
    """Scores the next token by running the whole sequence again, without a cache of keys and values."""

    def __init__(self, opened: "onnxruntime.InferenceSession", vocabulary: int) -> None:
        self._opened = opened
        self._inputs = inputs_of(opened)
        self._ids = token_input(self._inputs)
        outputs = opened.get_outputs()
        self._output = next((output.name for output in outputs if output.name == "logits"), outputs[0].name)
        self._vocabulary = vocabulary
        self.longest = self._ids.fixed(1)
        """The only sequence length that the model takes, if it fixes one."""

    def scores(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """[vocabulary] float64 scores of what follows `ids`."""
        # A model of fixed length gets the sequence padded behind; what follows a token does not change its scores.
        padded = np.zeros((self._ids.fixed(0) or 1, self.longest or len(ids)), np.int64)
        padded[:, : len(ids)] = ids
        (logits,) = run(self._opened, [self._output], token_feed(self._inputs, padded))
        if logits.ndim != 3 or logits.shape[1] != padded.shape[1]:
            raise DataError(
                f"output '{self._output}' is {list(logits.shape)}, not [batch, sequence, vocabulary] scores"
            )
        if logits.shape[2] < self._vocabulary:
            raise DataError(
                f"the tokenizer has {self._vocabulary} tokens and the model scores {logits.shape[2]}: "
                "it is another model's tokenizer"
            )
        # Tables are often padded beyond the tokenizer; a padding row is never the next token.
        row = logits[0, len(ids) - 1, : self._vocabulary].astype(np.float64)
        if np.isnan(row).any() or np.isposinf(row).any():
            raise NonFiniteError(f"the model's scores after {len(ids)} tokens hold NaN or Inf")
        return row
