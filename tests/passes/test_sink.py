"""Tensors that stay in memory."""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxq.passes.sink import Memory


def test_memory_takes_arrays_of_every_type() -> None:
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, ml_dtypes.float8_e4m3fn):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        kept = Memory().append("w", ir.DataType.from_numpy(array.dtype), array.shape, [array])
        np.testing.assert_array_equal(kept.numpy(), array)
