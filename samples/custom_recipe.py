"""A recipe of your own: formats by name and role, the embedding quantized too, and a look at the plan before.

Run it from anywhere:

    python samples/custom_recipe.py
"""

import argparse
from pathlib import Path

import onnxq

FOLDER = Path(__file__).parent / "code_lm"
RECIPE = """
name: mixed
extends: fp4                                    # the rules of that preset come first
rules:
  - match: {regex: 'val_(26|34|65|146)_.*'}     # the first layer's attention, more exactly
    weight: {format: fp6_e2m3}
  - match: {role: [embedding, head]}            # off in every preset
    weight: {format: int8}
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, default=Path("mixed.onnx"))
parser.add_argument("--windows", type=int, default=32, help="of 256 held-out tokens each; there are 320")
options = parser.parse_args()

recipe = options.output.with_suffix(".yaml")
recipe.write_text(RECIPE)
for entry in onnxq.plan(FOLDER / "model.onnx", recipe).entries[:8]:
    print(f"{entry.weight:28} {entry.op:8} {entry.spec or entry.reason}")
report = onnxq.quantize(FOLDER / "model.onnx", recipe, output=options.output, force=True)
formats = sorted({str(entry.format) for entry in report.quantized})
print(f"{report.model_bytes:,} bytes -> {report.output_bytes:,}, in {', '.join(formats)}")
found = onnxq.evaluate(options.output, tokens=FOLDER / "heldout.npy", limit=options.windows)
print(f"perplexity {found.value:.3f} on {found.tokens:,} tokens")
