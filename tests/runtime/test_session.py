import builtins
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import helper

from onnxq.api import quantize_proto
from onnxq.errors import DataError, MissingExtraError, SessionError, UsageError
from onnxq.runtime.inputs import inputs_of
from onnxq.runtime.session import run, session

ADD = "g (float[N] x) => (float[N] y) { y = Add(x, x) }"


def test_a_path_and_bytes_open_and_run(model_of, tmp_path):
    model = model_of(ADD)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    for given in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), model.SerializeToString()):
        (y,) = run(session(given), ["y"], {"x": np.float32([1, 2])})
        assert y.tolist() == [2, 4]


def test_threads_and_options_reach_onnxruntime(model_of):
    options = onnxruntime.SessionOptions()
    session(model_of(ADD).SerializeToString(), threads=1, accuracy_level=0, options=options)
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.qdq_matmulnbits_accuracy_level") == "0"


@pytest.mark.parametrize("level", [-1, 5])
def test_an_accuracy_level_that_does_not_exist_is_refused(level, model_of):
    with pytest.raises(UsageError, match=f"accuracy_level is {level}; valid: 0, 1, 2, 3, 4"):
        session(model_of(ADD).SerializeToString(), accuracy_level=level)


def test_an_unknown_provider_is_answered_with_those_there_are(model_of):
    with pytest.raises(UsageError, match="no provider 'CPUExecutionProvide' here: did you mean 'CPUExecutionProvider'"):
        session(model_of(ADD).SerializeToString(), providers=["CPUExecutionProvide"])


@pytest.mark.parametrize("providers", ["cpu", ["CPUExecutionProvider"]])
def test_one_provider_needs_no_list(providers, model_of):
    assert session(model_of(ADD).SerializeToString(), providers=providers).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("threads", [0, -2])
def test_no_threads_are_refused(threads, model_of):
    with pytest.raises(UsageError, match=f"threads is {threads}; at least one"):
        session(model_of(ADD).SerializeToString(), threads=threads)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA")
def test_cuda_without_onnxruntime_gpu_names_the_extra(model_of):
    with pytest.raises(UsageError, match=r"no provider 'CUDAExecutionProvider' here.*onnxq\[gpu\]"):
        session(model_of(ADD).SerializeToString(), providers=["cuda", "cpu"])


def test_an_empty_list_of_providers_is_refused(model_of):
    with pytest.raises(UsageError, match="names no execution provider"):
        session(model_of(ADD).SerializeToString(), providers=[])


def test_short_provider_names_are_known(model_of):
    opened = session(model_of(ADD).SerializeToString(), providers=["cpu"])
    assert opened.get_providers() == ["CPUExecutionProvider"]


def test_a_missing_onnxruntime_names_both_extras(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"onnxq\[cpu\].*onnxq\[gpu\]"):
        session(b"")


def test_importing_the_rooms_does_not_import_onnxruntime():
    rooms = "onnxq.runtime.generate, onnxq.analysis.compare, onnxq.analysis.evaluate"
    code = f"import sys, {rooms}; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def changed(model, *, ir_version=None, opset=None):
    model.ir_version = ir_version or model.ir_version
    model.opset_import[0].version = opset or model.opset_import[0].version
    return model


DEQUANTIZE = "g (float[N] x) => (float[4] d) { d = DequantizeLinear(w, s) }"
ONE = np.float32(1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(
            lambda of: changed(of(ADD), ir_version=99), r"IR version 99 .* up to \d+; .*--target ort", id="later IR"
        ),
        pytest.param(lambda of: changed(of(ADD), opset=99), r"opset 99 .* up to \d+; .*--target ort", id="later opset"),
        pytest.param(
            lambda of: of(DEQUANTIZE, w=np.zeros(4, ml_dtypes.float6_e2m3fn), s=ONE),
            "tensor 'w' has a number type .*(?i:float6).*; .*--target ort",
            id="FLOAT6",
        ),
        pytest.param(
            lambda of: changed(of(DEQUANTIZE, w=np.zeros(4, ml_dtypes.float6_e2m3fn), s=ONE), ir_version=14, opset=28),
            "FLOAT6.*; .*--target ort",
            id="FLOAT6 in its opset",
        ),
        pytest.param(
            lambda of: of(DEQUANTIZE, w=np.zeros(4, ml_dtypes.float4_e2m1fn), s=ONE),
            r"no kernel for DequantizeLinear \(opset 25, node ''\) .*--target ort",
            id="FLOAT4",
        ),
        pytest.param(
            lambda of: of('<ir_version: 13, opset_import: ["": 25, "mine": 1]> ' + ADD.replace("Add", "mine.Foo")),
            "operator Foo of domain mine is unknown",
            id="unknown operator",
        ),
        pytest.param(
            lambda of: of("g (float[N,3] x) => (float[N,4] y) { y = MatMul(x, w) }", w=np.zeros((2, 4), np.float32)),
            r"^onnxruntime [\d.]+ cannot load the model: Node \(\) Op \(MatMul\) .*Incompatible dimensions",
            id="any other",
        ),
    ],
)
def test_what_onnxruntime_cannot_load_is_said_in_plain_words(make, says, model_of):
    with pytest.raises(SessionError, match=says) as caught:
        session(make(model_of).SerializeToString())
    assert "\n" not in str(caught.value)
    assert ".cc" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["fp4", "fp6", "mxfp4"])
def test_what_another_target_would_run_is_said_with_the_target(recipe, model_of):
    rng = np.random.default_rng(0)
    model = model_of("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=rng.random((64, 64), np.float32))
    made, _ = quantize_proto(model, recipe, target="standard")
    with pytest.raises(SessionError, match="quantize with --target ort"):
        session(made.SerializeToString())


def test_a_weight_out_of_reach_of_the_fusion_is_named(model_of):
    model = model_of(
        """g (float[B,64] x, bool c) => (float[B,N] y) {
            y = If (c) <
                then_branch = t () => (float[B,N] a) { a = Relu(x) },
                else_branch = e () => (float[B,N] b)
                    { d = DequantizeLinear <axis: int = 0, block_size: int = 32> (w, s) b = MatMul(x, d) }
            >
        }""",
        w=np.zeros((64, 64), ml_dtypes.int4),
        s=np.ones((2, 64), np.float32),
    )
    with pytest.raises(SessionError, match="cannot reach weight 'w' from within a subgraph; exclude it"):
        session(model.SerializeToString())


def test_files_that_are_no_model_are_named(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(SessionError, match=r"m\.onnx': it is not an ONNX file"):
        session(tmp_path / "m.onnx")
    with pytest.raises(SessionError, match=r"none\.onnx': there is no such file"):
        session(tmp_path / "none.onnx")


def test_a_failing_run_gives_the_feed_and_the_cause(model_of, capfd):
    table = model_of("g (int64[N] i) => (float[N,2] y) { y = Gather(w, i) }", w=np.zeros((5, 2), np.float32))
    opened = session(table.SerializeToString())
    with pytest.raises(SessionError, match=r"running \(i int64\[1\]\): index 9 is beyond a table whose last row is 4"):
        run(opened, ["y"], {"i": np.array([9])})
    with pytest.raises(SessionError, match=r"i float64\[1\]\): Unexpected input data type"):
        run(opened, ["y"], {"i": np.array([1.0])})
    assert capfd.readouterr() == ("", ""), "onnxruntime logs nothing of its own"


def test_inputs_are_described_with_fixed_and_free_dimensions(model_of):
    model = model_of("g (float16[B,3] x, int64[2] i, float[] s) => (float16[B,3] y) { y = Neg(x) }")
    x, i, s = inputs_of(session(model.SerializeToString()))
    assert (x.name, x.dtype, x.shape) == ("x", np.float16, ("B", 3))
    assert (x.fixed(0), x.fixed(1)) == (None, 3)
    assert [str(each) for each in (x, i, s)] == ["'x' float16[B, 3]", "'i' int64[2]", "'s' float32[]"]


def test_an_input_that_numpy_cannot_hold_is_named(model_of):
    model = model_of(ADD)
    model.graph.input.append(helper.make_tensor_value_info("words", helper.TensorProto.STRING, [1]))
    with pytest.raises(DataError, match=r"input 'words' is a tensor\(string\)"):
        inputs_of(session(model.SerializeToString()))
