"""How the library's question for kernels is answered, without a GPU."""

import ctypes

import pytest

from onnxq.errors import SessionError
from onnxq.formats import get_format
from onnxq.formats.tiled import TILED_FORMATS
from onnxq.functions import operator_suffix
from onnxq.runtime.cuda import compiler
from onnxq.runtime.cuda.configuration import Operand
from onnxq.runtime.cuda.interface import MESSAGE_BYTES, Kernel, Kernels, Request
from onnxq.runtime.cuda.table import plan


def ask(request: Request, size: int = MESSAGE_BYTES) -> tuple[int, Kernels, str]:
    kernels, message = Kernels(), ctypes.create_string_buffer(size)
    code = compiler.callback(request, kernels, ctypes.addressof(message), size)
    return code, kernels, message.value.decode()


def request(**changed: int) -> Request:
    usual = {"device": 0, "format": 1, "type": 10, "scale_type": 1, "group": 128, "zero_points": 0, "K": 4096, "N": 64}
    return Request(**(usual | changed))


def test_the_library_numbers_formats_as_python_does():
    from onnxq.runtime.native import native_library

    named = {f"MatMul{operator_suffix(get_format(name))}Tiled" for name in TILED_FORMATS}
    assert {name for name in native_library().cuda_operators if name.endswith("Tiled") and name[0] == "M"} == named
    seen = {compiler.operand_of(request(format=number)).fmt for number in range(len(TILED_FORMATS))}
    assert seen == set(TILED_FORMATS)


def test_a_question_is_understood_and_answered_for_any_number_of_rows(monkeypatch):
    monkeypatch.setattr("onnxq.runtime.cuda.kernels.function", lambda *_: 0xF00)
    asked = request(format=3, type=16, scale_type=10, zero_points=1)
    operand = Operand("int4", "bfloat16", "float16", 128, zero=True)
    assert compiler.operand_of(asked) == operand
    code, kernels, message = ask(asked)
    assert (code, message) == (0, "")
    told = plan(operand, 64, 4096)
    assert [each.max_rows for each in kernels.each[: kernels.count]] == [rows for rows, _ in told]
    for each, (rows, configuration) in zip(kernels.each, told, strict=False):
        assert bytes(each) == bytes(Kernel.of(0xF00, rows, operand, configuration))


@pytest.mark.parametrize("size", [MESSAGE_BYTES, 12])
def test_what_goes_wrong_comes_back_as_a_message(monkeypatch, size):
    def fail(*_):
        raise SessionError("no kernel for you" * 100)

    monkeypatch.setattr("onnxq.runtime.cuda.kernels.function", fail)
    code, _, message = ask(request(), size)
    assert code == 1
    assert "SessionError: no kernel for you".startswith(message[:30])
    assert len(message) == size - 1
