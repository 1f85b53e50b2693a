import itertools

import pytest

from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Operand, Stream, Tile, tensor_maps
from onnxq.runtime.cuda.sources import source
from onnxq.runtime.cuda.table import choose, measured

OPERANDS = [
    Operand(fmt, dtype, scale, group)
    for fmt, dtype, scale, group in itertools.product(
        ["fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int4", "uint4"],
        ["float16", "bfloat16"],
        ["float32", "float16"],
        [0, 16, 32, 64, 128, 256, 4096],
    )
]
ROWS = [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 2048, 4096, 20000]
SHAPES = [(16, 128), (4096, 4096), (151936, 1024), (1024, 65536), (5120, 17408)]


@pytest.mark.parametrize("operand", OPERANDS, ids=str)
def test_every_product_has_a_configuration_that_the_device_takes(operand):
    for M, (N, K) in itertools.product(ROWS, SHAPES):
        chosen = choose(operand, M, N, K)
        launch = chosen.launch(operand, M, N)
        assert launch.shared_bytes <= SHARED_BYTES_LIMIT
        assert launch.block <= 1024
        assert max(launch.grid[1:]) <= 65535
        if isinstance(chosen, Stream):
            assert chosen.room == chosen.columns or chosen.room >= M
        elif operand.group and not chosen.fold:
            assert max(1, min(operand.group, 128) // 16) % chosen.steps == 0
        for tensor in tensor_maps(operand, chosen, M, N, K):
            if tensor:
                assert all(0 < size <= 256 for size in tensor.box)
                assert all(stride % 16 == 0 for stride in tensor.strides)
                assert tensor.box[0] * tensor.element % 16 == 0


def test_a_measured_product_gets_what_was_measured_for_it():
    lines = [line for line in measured() if line.fmt == "fp6_e3m2"]
    assert len(lines) > 50
    for line in lines:
        assert choose(Operand("fp6_e3m2"), line.M, line.N, line.K) == line.configuration


def test_few_rows_stream_and_many_rows_tile():
    assert isinstance(choose(Operand("int4", group=128), 1, 3000, 3072), Stream)
    assert isinstance(choose(Operand("int4", group=128), 4096, 3000, 3072), Tile)


@pytest.mark.parametrize("name", ["matmul_stream", "matmul_tile", "dequantize"])
def test_a_source_comes_in_one_piece(name):
    text = source(name)
    assert '#include "' not in text
    assert f"{name}(" in text
    assert "struct Raw" in text
