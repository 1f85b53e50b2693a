"""A fingerprint of a model: equal for equal graphs and weights, wherever they are stored."""

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from onnxq.model.form import Form
from onnxq.model.load import Model

Bytes = bytes | memoryview


def digest_of(pieces: Iterable[Bytes]) -> str:
    """SHA-256 over the SHA-256 of each piece, as hexadecimal digits; pieces are hashed side by side."""
    total = hashlib.sha256()
    for each in _hashes(pieces):
        total.update(each)
    return total.hexdigest()


def model_digest(model: Model) -> str:
    """The digest of a model's graph and weights.

    A model that is saved with external data has the same digest as the same model in one file.
    """
    form = Form.of(model.ir)
    message = form.proto.SerializeToString(deterministic=True)

    def pieces() -> Iterator[Bytes]:
        # The token under which large tensors stand is another one each time.
        yield message.replace(form.token.encode(), bytes(len(form.token)))
        for item in form.apart:
            yield from item.pieces()

    return digest_of(pieces())


def _hashes(pieces: Iterable[Bytes]) -> Iterator[bytes]:
    workers = os.cpu_count() or 1
    pending: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(workers) as executor:
        for piece in pieces:
            pending.append(executor.submit(_hash, piece))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _hash(piece: Bytes) -> bytes:
    return hashlib.sha256(piece).digest()
