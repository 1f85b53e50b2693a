import itertools

import pytest

from onnxq.formats.tiled import TILED_FORMATS
from onnxq.runtime.cuda.configuration import SHARED_BYTES_LIMIT, Operand, Stream, Tile
from onnxq.runtime.cuda.sources import source
from onnxq.runtime.cuda.table import MAX_ROWS, choose, measured, plan

OPERANDS = [
    Operand(fmt, dtype, scale, group, zero)
    for fmt, dtype, scale, group, zero in itertools.product(
        TILED_FORMATS,
        ["float16", "bfloat16", "float32"],
        ["float32", "float16"],
        [0, 16, 32, 64, 128, 256, 4096],
        [False, True],
    )
    if fmt.endswith("int4") or not zero
]
ROWS = [1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 256, 257, 512, 513, 1024, 2048, 4096, 20000]
SHAPES = [(16, 128), (4096, 4096), (151936, 1024), (1024, 65536), (5120, 17408)]


@pytest.mark.parametrize("operand", OPERANDS, ids=str)
def test_every_product_has_a_configuration_that_the_device_takes(operand):
    for M, (N, K) in itertools.product(ROWS, SHAPES):
        chosen = choose(operand, M, N, K)
        assert chosen.shared_bytes(operand) <= SHARED_BYTES_LIMIT
        assert chosen.block <= 1024
        if isinstance(chosen, Stream):
            assert chosen.room == chosen.columns or chosen.room >= M
            continue
        assert operand.dtype != "float32" or not chosen.fold
        if operand.group and not chosen.fold:
            assert max(1, min(operand.group, 128) // 16) % chosen.steps == 0


@pytest.mark.parametrize("operand", OPERANDS, ids=str)
def test_a_plan_serves_any_number_of_rows_in_order(operand):
    most = [rows for rows, _ in plan(operand, 4096, 11008)]
    assert most == sorted(set(most))
    assert most[-1] == MAX_ROWS


def test_a_measured_product_gets_what_was_measured_for_it():
    for line in measured():
        operand = Operand(line.fmt, group=line.group, zero=line.fmt.startswith("u"))
        assert choose(operand, line.M, line.N, line.K) == line.configuration


def test_of_two_products_as_near_the_one_of_the_same_format_and_groups_decides():
    for operand in (Operand("fp6_e2m3"), Operand("fp4_e2m1", group=32), Operand("uint4", group=32, zero=True)):
        (line,) = (
            each
            for each in measured()
            if (each.fmt, each.group, each.N, each.K, each.M) == (operand.fmt, operand.group, 4096, 4096, 1)
        )
        assert choose(operand, 1, 4608, 4096) == line.configuration


def test_of_two_products_as_near_the_one_of_the_same_shape_decides():
    # Of E2M3 the table has no such product of 8 rows, but one of half the length; of E3M2 it has this one.
    (line,) = (
        each
        for each in measured()
        if (each.fmt, each.N, each.K, each.M) == ("fp6_e3m2", 28672, 8192, 8) and not each.group
    )
    assert choose(Operand("fp6_e2m3"), 8, 28672, 8192) == line.configuration


def test_a_block_of_a_gated_product_has_gates_and_ups_in_pairs():
    for operand in (Operand("fp6_e2m3", gated=True), Operand("uint4", group=32, zero=True, gated=True)):
        for M in ROWS:
            assert choose(operand, M, 28672, 4096).rows % 32 == 0
    # Sums of float32 pieces are gated afterwards.
    wide = Operand("fp6_e2m3", "float32", gated=True)
    assert plan(wide, 28672, 4096) == plan(Operand("fp6_e2m3", "float32"), 28672, 4096)


def test_few_rows_stream_and_many_rows_tile():
    assert isinstance(choose(Operand("int4", group=128), 1, 3000, 3072), Stream)
    assert isinstance(choose(Operand("int4", group=128), 4096, 3000, 3072), Tile)


@pytest.mark.parametrize("name", ["matmul_stream", "matmul_tile"])
def test_a_source_comes_in_one_piece(name):
    text = source(name)
    assert '#include "' not in text
    assert f"{name}(" in text
    assert "struct Raw" in text
