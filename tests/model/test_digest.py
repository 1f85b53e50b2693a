import hashlib

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from onnxq.model.digest import digest_of, model_digest
from onnxq.model.load import from_proto

TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[n, 40] x) => (float[n, 40] y) {{ {} }}'


def made(body="y = MatMul(x, w)", at=None):
    proto = onnx.parser.parse_model(TEXT.format(body))
    weight = np.zeros((40, 40), np.float32)
    if at is not None:
        weight[at] = 1
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return from_proto(proto)


def test_equal_models_have_equal_digests():
    assert model_digest(made()) == model_digest(made())


@pytest.mark.parametrize("other", [made("y = MatMul(w, x)"), made(at=(0, 0)), made(at=(39, 39))])
def test_other_models_have_others(other):
    assert model_digest(other) != model_digest(made())


def test_pieces_are_in_order():
    pieces = [bytes([number]) * number for number in range(50)]
    hashes = b"".join(hashlib.sha256(each).digest() for each in pieces)
    assert digest_of(iter(pieces)) == hashlib.sha256(hashes).hexdigest()
    assert digest_of([memoryview(b"ab")]) != digest_of([b"a", b"b"])
