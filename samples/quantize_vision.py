"""Quantize two digit classifiers with one recipe: INT8 for convolutions, FP6 for the rest; accuracy before and after.

Run it from anywhere:

    python samples/quantize_vision.py
"""

import argparse
from pathlib import Path

import onnxq

FOLDER = Path(__file__).parent / "digits"
RECIPE = """
name: int8-convolutions
rules:
  - weight: {format: [fp6_e2m3, fp6_e3m2]}
  - match: {op: Conv}
    weight: {format: int8}
  - match: {max_size: 1000}
    skip: too small to matter
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", type=Path, default=Path(), help="where the models go")
options = parser.parse_args()

recipe = options.folder / "vision.yaml"
recipe.write_text(RECIPE)
for name in ("resnet", "vit"):
    model, output = FOLDER / f"{name}.onnx", options.folder / f"{name}-quantized.onnx"
    report = onnxq.quantize(model, recipe, output=output, force=True)
    before, after = (onnxq.evaluate(each, data=FOLDER / "test.npz") for each in (model, output))
    print(
        f"{name}: {report.model_bytes:,} bytes -> {report.output_bytes:,}; "
        f"accuracy {before.value:.2%} -> {after.value:.2%} of {after.samples} images"
    )
