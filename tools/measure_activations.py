"""What it costs to round activations: the tables of docs/activations.md.

    python tools/measure_activations.py                    # everything: about an hour on two cores
    python tools/measure_activations.py --step 8           # every eighth window of the language model
    python tools/measure_activations.py --rows 'W4*'       # and some of the rows

The digits models are measured by their accuracy on the test images. The language model is measured by the change of its
negative log-likelihood, in nats a token, on `heldout.npy`, calibrated on `calibration.npy`; and so are the two models
with outliers that `samples/code_lm/outliers.py` makes of it, which compute the same.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import onnxruntime
from language_model import CALIBRATION, MODEL, heldout, nll, with_outliers

import onnxq
from onnxq.analysis.spikes import skip_rules
from onnxq.recipes import Recipe, load_recipe, parse_recipe

DIGITS = Path(__file__).parents[1] / "samples" / "digits"
_BYTES = "{format: uint8, symmetric: false, range: mse}"
_WITHOUT_SPIKES = "w8a8 and what onnxq sensitivity --view spikes exempts"
_FP6 = "[fp6_e2m3, fp6_e3m2]"
_MX = "format: fp4_e2m1, granularity: group, group_size: 32, scale: e8m0"

# By what the tables call them: rows of the digits models, rows of the language model.
VISION: Mapping[str, str] = {
    "W8A8, the preset `w8a8`": "w8a8",
    "W8A8, `range: dynamic`": "weight: {format: int8}, activation: {format: uint8, symmetric: false, range: dynamic}",
    "W4A8, `gptq`": f"weight: {{format: int4, method: gptq}}, activation: {_BYTES}",
    "W6A6, the preset `w6a6-fp`": "w6a6-fp",
    "W4A4, the preset `w4a4-fp`": "w4a4-fp",
}
TEXT: Mapping[str, str] = {
    "W8A8, `absmax`": "weight: {format: int8}, activation: {format: uint8, symmetric: false}",
    "W8A8, `percentile`": "weight: {format: int8}, activation: {format: uint8, symmetric: false, range: percentile}",
    "W8A8, the preset `w8a8`": "w8a8",
    "W8A8, the preset, inputs with spikes left float": _WITHOUT_SPIKES,
    "W8A8 per token": "weight: {format: int8}, activation: {format: int8, granularity: token}",
    "W6A6 FP, `rtn`, no shift": f"weight: {{format: {_FP6}}}, activation: {{format: fp6_e3m2, range: mse}}",
    "W6A6 FP, the preset `w6a6-fp`": "w6a6-fp",
    "W4A4 FP, `rtn`, no shift": "weight: {format: fp4_e2m1}, activation: {format: fp4_e2m1, range: mse}",
    "W4A4 FP, the preset `w4a4-fp`": "w4a4-fp",
    "W4A4 INT4 per token, `gptq`": (
        "weight: {format: int4, method: gptq}, activation: {format: int4, granularity: token}"
    ),
    "W4A4 MXFP4, `gptq`": f"weight: {{{_MX}, method: gptq}}, activation: {{{_MX}}}",
    "W4A4 FP4 in groups of 16, `gptq`": (
        "weight: {format: fp4_e2m1, granularity: group, group_size: 16, scale: e4m3, method: gptq}, "
        "activation: {format: fp4_e2m1, granularity: group, group_size: 16}"
    ),
}


def recipe_of(text: str, model: Path, data: onnxq.Calibration) -> Recipe:
    """A preset, or a recipe of one rule."""
    if text == _WITHOUT_SPIKES:
        return load_recipe("w8a8").with_rules(*skip_rules(onnxq.spikes(model, data)))
    return parse_recipe(f"rules: [{{{text}}}]") if ":" in text else load_recipe(text)


def accuracies(folder: Path) -> Iterator[tuple[str, list[float]]]:
    """Accuracy of each digits model by row, the float models first."""
    paths = [DIGITS / f"{name}.onnx" for name in ("resnet", "vit")]
    yield "float", [onnxq.evaluate(path, data=DIGITS / "test.npz").value for path in paths]
    for name, text in VISION.items():
        row = []
        for path in paths:
            output, data = folder / "vision.onnx", onnxq.Calibration(DIGITS / "calibration.npz")
            onnxq.quantize(path, recipe_of(text, path, data), output=output, calibration=data, force=True)
            row.append(onnxq.evaluate(output, data=DIGITS / "test.npz").value)
        yield name, row


def changes(folder: Path, rows: Mapping[str, str], step: int, samples: int) -> Iterator[tuple[str, list[float]]]:
    """What each row adds to the loss of the language model, plain, with outlier channels and with spikes."""
    tokens = heldout(step)
    paths = [MODEL, with_outliers(folder / "channels.onnx", spikes=False)]
    paths.append(with_outliers(folder / "spikes.onnx", spikes=True))

    def loss(path: Path) -> float:
        return nll(path, tokens, accuracy_level=None)

    exact = [loss(path) for path in paths]
    for name, text in rows.items():
        row = []
        for path, before in zip(paths, exact, strict=True):
            output, data = folder / "text.onnx", onnxq.Calibration(CALIBRATION, samples=samples)
            onnxq.quantize(path, recipe_of(text, path, data), output=output, calibration=data, force=True)
            row.append(loss(output) - before)
        yield name, row


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=1, help="measure every so many windows of the language model")
    parser.add_argument("--rows", default="*", help="glob: which rows of the language model")
    parser.add_argument("--samples", type=int, default=32, help="windows of 512 tokens that it is calibrated on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"onnxruntime {onnxruntime.__version__}, {options.samples} windows, every {options.step}. window\n")
        print("| digits | resnet | vit |\n| --- | --- | --- |")
        for name, values in accuracies(Path(folder)):
            print(f"| {name} | " + " | ".join(f"{100 * each:.2f} %" for each in values) + " |", flush=True)
        print("\n| code_lm | plain | outlier channels | spikes |\n| --- | --- | --- | --- |")
        rows = {name: text for name, text in TEXT.items() if fnmatchcase(name, options.rows)}
        for name, values in changes(Path(folder), rows, options.step, options.samples):
            print(f"| {name} | " + " | ".join(f"{each:+.4f}" for each in values) + " |", flush=True)


if __name__ == "__main__":
    main()
