"""Sequential calibration: a layer is solved on what the quantized layers before it give, and a run can be resumed."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import onnxq
from onnxq.errors import DataError, OnnxqError, UsageError
from onnxq.formats import get_format, get_scale_type
from onnxq.methods.correct import aqer
from onnxq.methods.curvature import Curvature
from onnxq.methods.grid import GridSpec
from onnxq.methods.solve import gptq
from onnxq.model.load import from_proto
from onnxq.model.segment import segment
from onnxq.model.taps import Tap
from onnxq.passes import layers
from onnxq.passes.plan import make_plan
from onnxq.passes.sequential import solve_in_sequence
from onnxq.passes.stages import Layer, stages
from onnxq.recipes import parse_recipe
from onnxq.statistics.calibration import Calibration

TEXT = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 32] x) => (float[n, 8] y)
{
    a = MatMul(x, w0)
    b = MatMul(x, w1)
    c = Relu(a)
    d = Mul(b, c)
    wt = Transpose<perm=[1, 0]>(w2)
    e = MatMul(d, wt)
    f = Add(e, x)
    y = Gemm<transB=1>(f, w3)
}
"""
SHAPES = {"w0": (32, 48), "w1": (32, 48), "w2": (32, 48), "w3": (8, 32)}
RECIPE = parse_recipe("rules:\n- weight: {format: uint4, granularity: channel, symmetric: false, method: gptq}")
SPEC = GridSpec([get_format("uint4")], 32, get_scale_type("fp32"), symmetric=False)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) / 6 for name, shape in SHAPES.items()}


def proto() -> onnx.ModelProto:
    made = parser.parse_model(TEXT)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights().items())
    return made


@pytest.fixture
def data() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((50, 32)).astype(np.float32)


@pytest.fixture
def solved(data, tmp_path):
    """A run in a folder; what it solved, by name."""

    def run(folder: str = "run", calibration: Calibration | None = None, **settings) -> dict[str, np.ndarray]:
        model = from_proto(proto())
        plan, found = make_plan(model.ir, RECIPE, "ort")
        of = calibration or Calibration(data, batch=16)
        solutions = solve_in_sequence(model, plan, found, of, tmp_path / folder, **settings)
        names = [weight.name for weight, each in zip(found, plan, strict=True) if each.spec]
        return {name: solutions.get(at).decode()[0] for at, name in enumerate(names)}

    return run


def by_hand(x: np.ndarray) -> dict[str, np.ndarray]:
    """The same in numpy: each weight as [K, C], on the outputs of those before it, towards those of the float model."""
    w = weights()

    def solve(weight: np.ndarray, inputs: np.ndarray, floats: np.ndarray) -> np.ndarray:
        spec = GridSpec(SPEC.formats, len(weight), SPEC.scale_type, symmetric=False)
        wide = inputs.astype(np.float64)
        h = wide.T @ wide
        correction = aqer.correction(h, wide.T @ floats)
        return gptq.solve((weight + 0.5 * correction @ weight)[None], spec, Curvature(h)).decode()[0]

    made = {"w0": solve(w["w0"], x, x), "w1": solve(w["w1"], x, x)}

    def gated(parts: dict[str, np.ndarray]) -> np.ndarray:
        return np.maximum(x @ parts["w0"], 0) * (x @ parts["w1"])

    made["w2"] = solve(w["w2"].T, gated(made), gated(w))
    made["w3"] = solve(w["w3"].T, gated(made) @ made["w2"] + x, gated(w) @ w["w2"].T + x)
    return made


def test_each_layer_sees_the_quantized_ones_before_it(solved, data):
    found, expected = solved(), by_hand(data)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        # A tie that float32 sums break another way moves a code by one.
        assert np.isclose(found[name], array, atol=1e-5).mean() > 0.99, name


def test_it_is_not_what_statistics_of_the_float_model_give(solved, data):
    floats = weights()
    wide = (np.maximum(data @ floats["w0"], 0) * (data @ floats["w1"])).astype(np.float64)
    spec = GridSpec(SPEC.formats, 48, SPEC.scale_type, symmetric=False)
    blind = gptq.solve(floats["w2"].T[None], spec, Curvature(wide.T @ wide)).decode()[0]
    assert not np.isclose(solved()["w2"], blind, atol=1e-5).all()


def test_who_waits_is_told_how_many_stages_are_solved(solved, data):
    seen: list[tuple[int, int]] = []
    solved(calibration=Calibration(data, batch=16, progress=lambda *step: seen.append(step)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("budget", [0, 5000])
def test_activations_beyond_the_budget_lie_in_files(budget, solved):
    for name, array in solved("files", budget_bytes=budget).items():
        assert np.array_equal(array, solved()[name])


def test_an_interrupted_run_goes_on_where_it_was(solved, monkeypatch):
    whole, real, calls = solved("whole"), layers.solve, []

    def failing(item, *arguments):
        calls.append(item.weight.name)
        if item.weight.name == "w2" and calls.count("w2") == 1:
            raise KeyboardInterrupt
        return real(item, *arguments)

    monkeypatch.setattr(layers, "solve", failing)
    with pytest.raises(KeyboardInterrupt):
        solved("broken")
    resumed = solved("broken")
    assert sorted(calls) == ["w0", "w1", "w2", "w2", "w3"]
    for name, array in whole.items():
        assert np.array_equal(resumed[name], array)
    solved("broken")
    assert len(calls) == 5


def test_a_folder_of_another_run_is_refused(solved, data):
    solved()
    with pytest.raises(DataError, match="another data"):
        solved(calibration=Calibration(data + 1))


def test_a_folder_with_something_else_is_refused(solved, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(DataError, match=r"mine.*empty"):
        solved("mine")


def test_a_damaged_solution_is_named(solved, tmp_path):
    solved()
    path = tmp_path / "run" / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"0\.safetensors.*damaged"):
        solved()


def test_quantize_writes_what_was_solved(data, tmp_path):
    onnx.save(proto(), tmp_path / "m.onnx")
    report = onnxq.quantize(
        tmp_path / "m.onnx", RECIPE, output=tmp_path / "q.onnx", calibration=Calibration(data), sequential=True
    )
    assert len(report.quantized) == 4
    assert (tmp_path / "q.onnx").exists()


def test_a_run_is_kept_in_a_folder_and_taken_from_it(data, tmp_path, monkeypatch):
    onnx.save(proto(), tmp_path / "m.onnx")
    given = {"calibration": Calibration(data), "resume": tmp_path / "kept", "force": True}
    onnxq.quantize(tmp_path / "m.onnx", RECIPE, output=tmp_path / "a.onnx", **given)
    monkeypatch.setattr(layers, "solve", None)
    onnxq.quantize(tmp_path / "m.onnx", RECIPE, output=tmp_path / "b.onnx", **given)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    with pytest.raises(OnnxqError, match="resume"):
        onnxq.quantize(tmp_path / "m.onnx", RECIPE, output=tmp_path / "a.onnx", sequential=False, **given)


def test_statistics_in_a_cache_are_those_of_the_float_model(data, tmp_path):
    onnx.save(proto(), tmp_path / "m.onnx")
    notes = [
        onnxq.quantize(tmp_path / "m.onnx", RECIPE, output=tmp_path / "q.onnx", force=True, calibration=given).notes
        for given in (Calibration(data), Calibration(data, cache=tmp_path / "kept.safetensors"))
    ]
    assert any("layer by layer" in note for note in notes[0])
    assert not any("layer by layer" in note for note in notes[1])
    assert notes[0][-1] == notes[1][-1] == "calibrated on 50 samples"


def test_sequential_without_data_says_what_is_missing(tmp_path):
    onnx.save(proto(), tmp_path / "m.onnx")
    with pytest.raises(OnnxqError, match="data"):
        onnxq.quantize(tmp_path / "m.onnx", RECIPE, output=tmp_path / "q.onnx", sequential=True)


def test_a_part_has_only_what_it_needs(data):
    model = from_proto(proto())
    nodes = {node.outputs[0].name: node for node in model.ir.graph}
    layers = [
        Layer("x", (nodes["a"],)),
        Layer("x", (nodes["b"],)),
        Layer("d", (nodes["e"],)),
        Layer("f", (nodes["y"],)),
    ]
    first, second, third = stages(model.ir.graph, layers)
    assert (first.layers, first.given, first.kept, first.applied) == ((0, 1), ("x",), ("x",), ())
    assert (second.layers, second.given, second.kept, second.applied) == ((2,), ("x",), ("d", "x"), (0, 1))
    assert (third.layers, third.given, third.kept, third.applied) == ((3,), ("d", "x"), (), (2,))
    given = {name: onnx.helper.make_tensor_value_info(name, 1, [None, None]) for name in third.given}
    tap = Tap(["f"], [], [onnx.ValueInfoProto(name="f")])
    with segment(model, given, [tap]) as opened:
        part = onnx.ModelProto.FromString(opened).graph
    assert [node.op_type for node in part.node] == ["Transpose", "MatMul", "Add"]
    assert [each.name for each in part.initializer] == ["w2"]


def test_what_subgraphs_read_flows_too():
    text = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[2, 4] x, bool flag) => (float[2, 4] z)
    {
        a = MatMul(x, w0)
        b = Neg(x)
        z0 = If (flag) <
            then_branch = t () => (float[2, 4] p) { p = Add(a, b) },
            else_branch = e () => (float[2, 4] q) { q = Identity(a) }
        >
        z = MatMul(z0, w1)
    }
    """
    made = parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.eye(4, dtype=np.float32), name) for name in ("w0", "w1"))
    graph = from_proto(made).ir.graph
    nodes = {node.outputs[0].name: node for node in graph}
    first, second = stages(graph, [Layer("x", (nodes["a"],)), Layer("z0", (nodes["z"],))])
    assert first.kept == ("b", "flag", "x")
    assert second.given == ("b", "flag", "x")


def test_samples_of_feeds_are_counted(data):
    feeds = [{"x": data[:16]}, {"x": data[16:21]}]
    _, report = onnxq.quantize_proto(proto(), RECIPE, calibration=Calibration(feeds))
    assert report.notes[-1] == "calibrated on 21 samples"


def test_an_iterator_is_refused_with_the_ways_out(data):
    with pytest.raises(UsageError, match="gone through more than once: give a list of feeds, or arrays"):
        onnxq.quantize_proto(proto(), RECIPE, calibration=Calibration(iter([{"x": data}])))


def test_data_that_is_no_calibration_is_told_how_to_be_one(data):
    with pytest.raises(UsageError, match=r"calibration is a ndarray; data goes in as onnxq\.Calibration\(data\)"):
        onnxq.quantize_proto(proto(), RECIPE, calibration=data)


def test_solutions_are_kept_in_a_folder(solved, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match=r"'.*file' is a file; solutions are kept in a folder"):
        solved("file")


def test_weights_that_cannot_be_measured_are_said():
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (bool p, float[n,32] x) => (float[n,16] y) {
          h = MatMul(x, outer)
          y = If(p) <then_branch = a () => (float[n,16] t) { t = MatMul(h, inner) },
                     else_branch = b () => (float[n,16] u) { u = Neg(h) }>
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"outer": (32, 16), "inner": (16, 16)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    data = Calibration([{"x": rng.standard_normal((8, 32), np.float32), "p": np.array(True)}])
    warnings = onnxq.quantize_proto(model, RECIPE, calibration=data)[1].warnings
    assert [each.split(";")[0] for each in warnings if "without data" in each] == [
        "rounded without data where the method needs it: 'inner'"
    ]
