"""What each preset costs on the sample models: the tables of README.md and docs/results.md.

    python tools/measure_sample.py                         # everything: about fifteen minutes on two cores
    python tools/measure_sample.py --presets fp6,int4      # two of the presets
    python tools/measure_sample.py --json results.json

The language model of `samples/code_lm` is measured on all of its held-out tokens: perplexity, and its change against
the float model. Where onnxruntime fuses products into kernels that round activations to int8, a second row has float
activations, so that the first minus the second is what the activations cost. The file of `--target standard` cannot be
opened by onnxruntime: ONNX's own reference implementation decodes its weights, and they take the place of the float
ones, or of those of `ort` where a preset changes more than weights. A row of `ort` and of `standard` must agree within
1e-4, or the command fails; within 2e-3 where activations are rounded, to which side a float's last digit may decide.

The digits models are measured by their accuracy on the test images.

Presets whose method needs it are calibrated on the data that each sample model has for that, with the settings that
`onnxq quantize --calib` has by default.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxq
from onnxq.analysis.execution import Execution
from onnxq.methods.solve import SOLVERS
from onnxq.recipes import load_recipe, preset_names

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL, TOKENS = SAMPLES / "code_lm" / "model.onnx", SAMPLES / "code_lm" / "heldout.npy"
DIGITS, TEST = ("resnet", "vit"), SAMPLES / "digits" / "test.npz"
TEXT, IMAGES = SAMPLES / "code_lm" / "calibration.npy", SAMPLES / "digits" / "calibration.npz"
PRESETS = [name for name in preset_names() if name != "none"]
TARGETS = ("ort", "ort-int8", "standard")
LARGEST_DIFFERENCE = 1e-4
LARGEST_DIFFERENCE_ROUNDED = 2e-3
_FLOAT_ACTIVATIONS = 1
_HEADER = ("recipe", "target", "file", "bits a weight", "perplexity", "change", "how its weights ran")


@dataclass(frozen=True)
class Row:
    """One model measured.

    Attributes:
        recipe: Preset, or `float`.
        target: Of the conversion; empty for the float model.
        size_bytes: Of the file.
        bits: Stored for each quantized weight, with scales and zero points.
        perplexity: On the tokens.
        change: Against the float model, as a fraction.
        how: How the weights ran, in words.
    """

    recipe: str
    target: str
    size_bytes: int
    bits: float
    perplexity: float
    change: float
    how: str

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        recipe = f"`{self.recipe}`" if self.target else self.recipe
        target = f"`{self.target}`" if self.target else ""
        change = f"{self.change:+.2%}".replace("%", " %") if self.target else ""
        size = f"{self.size_bytes / 1e6:.2f} MB"
        return recipe, target, size, f"{self.bits:.2f}", f"{self.perplexity:.3f}", change, self.how


def measure(
    presets: Sequence[str], folder: Path, *, targets: Sequence[str] = TARGETS, limit: int | None = None
) -> Iterator[Row]:
    """Rows of the language model, the float model first.

    Args:
        presets: Names.
        folder: Where the models go.
        targets: With `ort` first.
        limit: Windows of 256 tokens that are used; None for all.
    """
    plain = onnxq.evaluate(MODEL, tokens=TOKENS, limit=limit)
    # The large weights are stored as float16.
    yield Row("float", "", MODEL.stat().st_size, 16.0, plain.value, 0.0, _how(plain.execution))
    for preset in presets:
        exact = plain_bits = 0.0
        for target in targets:
            output = folder / f"{preset}-{target}.onnx"
            report = onnxq.quantize(MODEL, preset, output=output, target=target, **_calibrated(preset, TEXT, folder))
            bits = _bits(report)
            head = (preset, target, report.output_bytes, bits)
            if target == "ort-int8" and bits == plain_bits:
                # No weight of this preset is one that int8 holds exactly: the same model.
                continue
            if target == "standard":
                recipe = load_recipe(preset)
                more = recipe.equalize or recipe.correct or _rounds(preset)
                base = folder / f"{preset}-ort.onnx" if more else MODEL
                found = onnxq.evaluate(_decoded_file(base, output), tokens=TOKENS, limit=limit)
                difference = abs(found.value / exact - 1)
                how = f"decoded by onnx.reference: `ort` within {max(difference, 1e-8):.0e}"
                yield Row(*head, found.value, found.value / plain.value - 1, how)
                if difference > (LARGEST_DIFFERENCE_ROUNDED if _rounds(preset) else LARGEST_DIFFERENCE):
                    raise SystemExit(f"{preset}: ort and standard differ by {difference:.1e}")
                continue
            found = onnxq.evaluate(output, tokens=TOKENS, limit=limit)
            yield Row(*head, found.value, found.value / plain.value - 1, _how(found.execution))
            if target != "ort":
                continue
            exact, plain_bits = found.value, bits
            if found.execution.rounds_activations:
                found = onnxq.evaluate(output, tokens=TOKENS, limit=limit, accuracy_level=_FLOAT_ACTIVATIONS)
                exact = found.value
                yield Row(*head, exact, exact / plain.value - 1, _how(found.execution))


def accuracies(presets: Sequence[str], folder: Path) -> Iterator[tuple[str, list[float]]]:
    """Accuracy of each digits model, for the float models and each preset."""
    yield "float", [onnxq.evaluate(_digits(name), data=TEST).value for name in DIGITS]
    for preset in presets:
        row = []
        for name in DIGITS:
            output = folder / f"{name}-{preset}.onnx"
            onnxq.quantize(_digits(name), preset, output=output, **_calibrated(preset, IMAGES, folder / name))
            row.append(onnxq.evaluate(output, data=TEST).value)
        yield preset, row


def calibration_for(preset: str, data: Path, cache: Path | None = None) -> onnxq.Calibration | None:
    """What a preset is calibrated on; None if it needs nothing."""
    recipe = load_recipe(preset)
    methods = {rule.weight.method for rule in recipe.rules if rule.weight}
    static = any(rule.activation and not rule.activation.is_dynamic for rule in recipe.rules)
    needs = static or recipe.equalize or any(SOLVERS[method].hessian == "needs" for method in methods)
    # A cache is of one model, and this preset may have one of its own.
    return onnxq.Calibration(data, cache=None if static or recipe.equalize else cache) if needs else None


def _calibrated(preset: str, data: Path, folder: Path) -> dict[str, Any]:
    """What a preset is calibrated on; what it solves layer by layer is kept for the next target."""
    folder.mkdir(exist_ok=True)
    calibration = calibration_for(preset, data, folder / "statistics.safetensors")
    recipe = load_recipe(preset)
    methods = {rule.weight.method for rule in recipe.rules if rule.weight}
    if calibration is None or not any(SOLVERS[method].hessian == "needs" for method in methods):
        return {"calibration": calibration}
    # Steps on the float model make another one for each target.
    kept = {} if recipe.equalize or _rounds(preset) else {"resume": folder / f"{preset}-solved"}
    return {"calibration": replace(calibration, cache=None)} | kept


def _rounds(preset: str) -> bool:
    """Whether a preset rounds activations."""
    return any(rule.activation for rule in load_recipe(preset).rules)


def decode(original: onnx.ModelProto, emitted: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the weights that one of `--target standard` means, by ONNX's reference."""
    made = onnx.ModelProto()
    made.CopyFrom(original)
    ours = {node.name: node for node in made.graph.node}
    for node in emitted.graph.node:
        reader = ours.get(node.name)
        if reader is None or not reader.op_type.startswith("MatMul"):
            continue
        if (weight := _weight(emitted, node)) is not None:
            tensor = numpy_helper.from_array(weight, f"decoded_{node.name}")
            made.graph.initializer.append(tensor)
            inputs, outputs = [reader.input[0], tensor.name], list(reader.output)
            reader.CopyFrom(helper.make_node("MatMul", inputs, outputs, name=reader.name))
    return made


def _weight(model: onnx.ModelProto, node: onnx.NodeProto) -> np.ndarray | None:
    """The [K, N] float32 weight of a product, where it is stored as codes; None where it is not."""
    makers = {name: each for each in model.graph.node for name in each.output}
    tensors = {each.name: each for each in model.graph.initializer}
    # Without the bias.
    inputs = node.input[1:-1] if node.op_type.startswith("Linear") else node.input[1:]
    needed, waiting = set(), list(inputs)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        if name not in tensors and name not in makers:
            return None
        needed.add(name)
        waiting += makers[name].input if name in makers else []
    steps = [each for each in model.graph.node if needed & set(each.output)]
    wanted = node.input[1]
    if node.domain == "onnxq":
        # The product with the unit matrix is the weight.
        rows = next(each.ints[0] for each in node.attribute if each.name == "shape")
        product = node.op_type.replace("Linear", "MatMul", 1)
        steps = [*steps, helper.make_node(product, ["unit", *inputs], ["weight"], domain="onnxq")]
        steps[-1].attribute.extend(node.attribute)
        tensors["unit"], wanted = numpy_helper.from_array(np.eye(rows, dtype=np.float32), "unit"), "weight"
        needed.add("unit")
    elif not any(each.op_type == "DequantizeLinear" for each in steps):
        return None
    output = helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(steps, "weight", [], [output], [t for name, t in tensors.items() if name in needed])
    settings = {"functions": model.functions, "opset_imports": model.opset_import, "ir_version": model.ir_version}
    result: np.ndarray = ReferenceEvaluator(helper.make_model(graph, **settings)).run(None, {})[0]
    return result


def _decoded_file(base: Path, path: Path) -> Path:
    proto = decode(*(onnx.ModelProto.FromString(each.read_bytes()) for each in (base, path)))
    decoded = path.with_suffix(".decoded.onnx")
    decoded.write_bytes(proto.SerializeToString())
    return decoded


def _digits(name: str) -> Path:
    return SAMPLES / "digits" / f"{name}.onnx"


def _bits(report: onnxq.Report) -> float:
    done = report.quantized
    return 8 * sum(each.result_bytes for each in done) / sum(int(np.prod(each.shape)) for each in done)


def _how(execution: Execution) -> str:
    """Without the products with float weights (the output head) where there are others."""
    sentences = execution.sentences()
    return "; ".join(sentences[:-1] if execution.plain and len(sentences) > 1 else sentences)


def line(cells: Sequence[str]) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure, print two tables, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default=",".join(PRESETS), help="comma-separated; by default all")
    parser.add_argument("--limit", type=int, help="windows of 256 tokens; by default all 320")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    presets = options.presets.split(",")
    versions = {name: version(name) for name in ("onnx", "onnxruntime", "numpy")}
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {each}" for name, each in versions.items()))
    with tempfile.TemporaryDirectory() as folder:
        rows, scores = [], {}
        print(f"\n{line(_HEADER)}\n{line(['---'] * len(_HEADER))}")
        for row in measure(presets, Path(folder), limit=options.limit):
            rows.append(row)
            print(line(row.cells()), flush=True)
        print(f"\n{line(['recipe', *DIGITS])}\n{line(['---'] * 3)}")
        for preset, values in accuracies(presets, Path(folder)):
            scores[preset] = dict(zip(DIGITS, values, strict=True))
            name = preset if preset == "float" else f"`{preset}`"
            print(line([name, *(f"{each:.2%}".replace("%", " %") for each in values)]), flush=True)
    if options.json:
        made = {"versions": versions, "code_lm": [asdict(row) for row in rows], "digits": scores}
        options.json.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
