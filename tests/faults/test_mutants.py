"""Damaged models: truncated, spliced, with flipped bits or senseless fields; each is one clear error or a model."""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from google.protobuf.message import Message

from onnxq.errors import ModelError, OutputError
from onnxq.model.load import load
from onnxq.model.save import stage

MUTANTS = 5000

Damage = Callable[[list[bytes], random.Random], bytes]

MODELS = [
    """
    <ir_version: 10, opset_import: ["": 21, "f": 1], producer_name: "maker", metadata_props: ["key": "value"]>
    g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> {
        [first] a = Add(x, w)
        b = f.body <alpha = 2.0> (a)
        y = If(c) <
            then_branch = t () => (float[N, 4] u) <float[1] v = {1.0}> { u = Add(b, v) },
            else_branch = e () => (float[N, 4] z) { k = Constant <value = float[1] {1.0}> () z = Add(b, k) }
        >
    }
    <domain: "f", opset_import: ["": 21]> body <alpha> (m) => (n) {
        j = Constant <value_float: float = @alpha> ()
        n = Mul(m, j)
    }
    """,
    """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[N, 8] x) => (float[N, 8] y) {
        q = DequantizeLinear <axis = 0, block_size = 4> (w4, s)
        h = MatMul(x, q)
        i = Reshape(h, shape)
        y = LayerNormalization <axis = -1> (i, v)
    }
    """,
]


def _seeds(folder: Path) -> list[bytes]:
    """Serialized models; the second refers to external data in `folder`."""
    first, second = (onnx.parser.parse_model(text) for text in MODELS)
    large = np.arange(2048, dtype=np.float32)
    first.graph.initializer.append(onnx.numpy_helper.from_array(large, "large"))
    second.graph.initializer.append(onnx.helper.make_tensor("w4", 22, [8, 8], bytes(32), raw=True))
    second.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 8), np.float32), "s"))
    second.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 8]), "shape"))
    tensor = second.graph.initializer.add(name="v", data_type=1, dims=[8], data_location=1)
    for key, value in {"location": "v.data", "offset": "16", "length": "32"}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "v.data").write_bytes(bytes(48))
    return [first.SerializeToString(), second.SerializeToString()]


def _damaged_bytes(seeds: list[bytes], chance: random.Random) -> bytes:
    content = bytearray(chance.choice(seeds))
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        # Most of the large model is one weight, which comes last; damage is to hit what has a meaning.
        at = chance.randrange(min(len(content), 1200) or 1)
        match chance.randrange(8):
            case 0:
                del content[at:]
            case 1:
                other = chance.choice(seeds)
                start = chance.randrange(min(len(other), 1200))
                content[at:at] = other[start : start + chance.randrange(40)]
            case 2:
                del content[at : at + chance.randrange(1, 20)]
            case 3:
                content[at : at + 8] = chance.randbytes(8)
            case 4:
                content[at : at + 1] = bytes([chance.choice([0, 1, 0x7F, 0x80, 0xFF])])
            case _:
                content[at : at + 1] = bytes([content[at] ^ 1 << chance.randrange(8)]) if content else b""
    return bytes(content)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if hasattr(value, "append") else [value]:
                yield from _messages(inner)


def _damaged_fields(seeds: list[bytes], chance: random.Random) -> bytes:
    """A message that parses, with fields removed, repeated, exchanged or set to senseless values."""
    model = onnx.ModelProto.FromString(chance.choice(seeds))
    for _ in range(chance.choice([1, 1, 2, 3])):
        messages = list(_messages(model))
        message = chance.choice(messages)
        field = chance.choice(message.DESCRIPTOR.fields)
        repeated = hasattr(getattr(message, field.name), "append")
        if chance.random() < 0.3:
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            same = [other for other in messages if other.DESCRIPTOR is field.message_type]
            other = type(chance.choice(same))() if same else None
            if other is not None:
                other.CopyFrom(chance.choice(same))
                target = getattr(message, field.name)
                target.append(other) if repeated else target.CopyFrom(other)
        else:
            value: object
            if field.type == field.TYPE_STRING:
                value = chance.choice(["", "x", "y", "w", "If", "Constant", "../x", "v.data", "a" * 300, "\0"])
            elif field.type == field.TYPE_BYTES:
                value = chance.randbytes(chance.randrange(20))
            elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
                value = chance.choice([0.0, -1.0, float("nan"), float("inf")])
            elif field.type == field.TYPE_ENUM:
                value = chance.choice(field.enum_type.values).number
            else:
                value = chance.choice([0, 1, 2, 3, 8, 27, 99, 2**31 - 1])
            getattr(message, field.name).append(value) if repeated else setattr(message, field.name, value)
    return model.SerializeToString()


@pytest.mark.parametrize("damage", [_damaged_bytes, _damaged_fields])
def test_mutants(
    damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    # Nothing here is about power failures, and syncing takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    seeds = _seeds(tmp_path / "in")
    chance = random.Random(0)
    outcomes: Counter[str] = Counter()
    messages: list[str] = []
    path = tmp_path / "in" / "m.onnx"
    for _ in range(MUTANTS // 2):
        path.write_bytes(damage(seeds, chance))
        try:
            model = load(path)
        except ModelError as error:
            messages.append(str(error))
            outcomes["refused"] += 1
            continue
        try:
            with stage(out / "m.onnx") as staging:
                staging.commit(model, external=chance.choice([None, True, False]))
        except OutputError:
            outcomes["not saved"] += 1
            assert list(out.iterdir()) == []
            continue
        outcomes["saved"] += 1
        load(out / "m.onnx")
        for left in out.iterdir():
            left.unlink()
    assert outcomes.total() == MUTANTS // 2
    assert all(str(path) in message and "\n" not in message for message in messages)
    # Were nearly all refused at the first byte, or none, the mutants would not reach what they are meant for.
    assert outcomes["refused"] > 0.2 * MUTANTS / 2
    assert outcomes["saved"] > 0.05 * MUTANTS / 2
