import json
import sys

import pytest

LOOKED_FOR = ["onnxruntime", "native library", "CPU kernels", "CuPy", "GPU", "GPU kernels"]


def findings(onnxq) -> dict[str, dict[str, str | None]]:
    done = onnxq("doctor", "--json")
    assert done.code == 0
    return {each["what"]: each for each in json.loads(done.out)}


def test_everything_is_named_with_what_there_is_or_why_not(onnxq):
    found = findings(onnxq)
    assert list(found) == LOOKED_FOR
    assert all(each["found"] or each["problem"] for each in found.values())
    assert "CPUExecutionProvider" in found["onnxruntime"]["found"]
    lines = onnxq("doctor").out.splitlines()
    assert [line.startswith("ok") for line in lines] == [each["problem"] is None for each in found.values()]


def test_without_cupy_it_says_once_what_to_install(onnxq, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    from onnxq.runtime.cuda.device import devices

    devices.cache_clear()
    found = findings(onnxq)
    assert "pip install 'onnxq[gpu]'" in found["CuPy"]["problem"]
    assert [found[what]["problem"] for what in ("GPU", "GPU kernels")] == ["needs CuPy"] * 2


def test_without_the_library_the_rest_is_told(onnxq, monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXQ_NATIVE_LIBRARY", str(tmp_path / "nothing.so"))
    found = findings(onnxq)
    assert "there is no file" in found["native library"]["problem"]
    assert "the native library is missing" in found["CPU kernels"]["problem"]
    assert found["onnxruntime"]["problem"] is None


@pytest.mark.parametrize("name", ["plain", "avx1024"])
def test_a_forced_instruction_set_is_told(onnxq, monkeypatch, name):
    monkeypatch.setenv("ONNXQ_CPU_ISA", name)
    found = findings(onnxq)["CPU kernels"]
    assert found["found"].startswith("plain") if name == "plain" else "avx1024" in found["problem"]
