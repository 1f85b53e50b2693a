import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq.formats import NAMED_FORMATS, pack, packed_bytes, unpack

ONNX_FORMATS = [fmt for fmt in NAMED_FORMATS.values() if fmt.onnx_type]
every_width = pytest.mark.parametrize("bits", range(1, 9))
every_onnx_format = pytest.mark.parametrize("fmt", ONNX_FORMATS, ids=lambda fmt: fmt.name)


def packed_as_one_integer(codes, bits):
    """The definition: code i stands in bits i * bits and up of one long little-endian number."""
    number = sum(int(code) << at * bits for at, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


def random_codes(count, bits):
    return np.random.default_rng([count, bits]).integers(0, 2**bits, count, np.uint8)


@every_width
def test_bytes_are_dense_and_lowest_bit_first_and_come_back(bits):
    for count in range(68):
        codes = random_codes(count, bits)
        packed = pack(codes, bits)
        assert packed.dtype == np.uint8
        assert packed.size == packed_bytes(count, bits)
        assert packed.tobytes() == packed_as_one_integer(codes, bits)
        assert unpack(packed, bits, count).tolist() == codes.tolist()


@every_width
def test_unused_bits_of_the_last_byte_are_zero(bits):
    for count in range(1, 18):
        packed = pack(np.full(count, 2**bits - 1, np.uint8), bits)
        assert int.from_bytes(packed.tobytes(), "little") == 2 ** (count * bits) - 1


@given(st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_unpack_undoes_pack(bits_and_codes):
    bits, codes = bits_and_codes
    packed = pack(np.array(codes, np.uint8), bits)
    assert packed.tobytes() == packed_as_one_integer(codes, bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@every_width
def test_a_strided_array_is_packed_in_row_major_order_and_left_alone(bits):
    codes = random_codes(15 * 22, bits).reshape(15, 22)
    before = codes.copy()
    view = codes.T[::2, ::-1]
    assert pack(view, bits).tobytes() == packed_as_one_integer(view.reshape(-1), bits)
    np.testing.assert_array_equal(codes, before)


@every_width
def test_a_large_ragged_tensor_comes_back(bits):
    codes = random_codes(100_003, bits)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, codes.size), codes)


def test_every_integer_and_float_type_of_onnx_below_a_byte_is_compared():
    assert {fmt.onnx_type for fmt in ONNX_FORMATS} >= {
        "INT4",
        "UINT4",
        "INT2",
        "UINT2",
        "FLOAT4E2M1",
        "FLOAT6E2M3",
        "FLOAT6E3M2",
    }


@every_onnx_format
def test_bytes_equal_the_raw_data_of_onnx(fmt):
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(fmt.onnx_type))
    for count in range(68):
        codes = random_codes(count, fmt.bits)
        array = codes.view(dtype)
        packed = pack(codes, fmt.bits).tobytes()
        assert numpy_helper.from_array(array).raw_data == packed
        assert ir.tensor(array).tobytes() == packed


@every_onnx_format
def test_onnx_reads_the_packed_codes_as_the_values_they_mean(fmt):
    codes = np.flatnonzero(np.isfinite(fmt.values)).astype(np.uint8)
    tensor = TensorProto(
        data_type=TensorProto.DataType.Value(fmt.onnx_type), dims=codes.shape, raw_data=pack(codes, fmt.bits).tobytes()
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.float32), fmt.decode(codes))
    in_ir = ir.serde.deserialize_tensor(tensor)
    np.testing.assert_array_equal(in_ir.numpy().astype(np.float32), fmt.decode(codes))
