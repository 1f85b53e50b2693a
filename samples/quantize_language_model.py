"""Quantize a language model to FP6, measure both, and let both write.

Run it from anywhere:

    python samples/quantize_language_model.py
    python samples/quantize_language_model.py --recipe int4 --windows 320
"""

import argparse
from pathlib import Path

import onnxq

FOLDER = Path(__file__).parent / "code_lm"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--recipe", default="fp6", help="a preset or a .yaml file")
parser.add_argument("--output", type=Path, default=Path("code_lm.onnx"))
parser.add_argument("--windows", type=int, default=32, help="of 256 held-out tokens each; there are 320")
options = parser.parse_args()

report = onnxq.quantize(FOLDER / "model.onnx", options.recipe, output=options.output, force=True)
print(f"{report.model_bytes:,} bytes -> {report.output_bytes:,}; {len(report.quantized)} weights quantized")
for reason, count in report.reasons.items():
    print(f"  left as it was: {count} ({reason})")

for model in (FOLDER / "model.onnx", options.output):
    found = onnxq.evaluate(model, tokens=FOLDER / "heldout.npy", limit=options.windows)
    print(f"\n{model.name}: perplexity {found.value:.3f} on {found.tokens:,} tokens")
    print("  " + "\n  ".join(found.execution.sentences()))
    prompt = "import os\n\n\ndef "
    made = onnxq.generate(model, FOLDER / "tokenizer.json", prompt, max_new_tokens=48, temperature=0.7, seed=1)
    print("    " + (prompt + made.text).rstrip().replace("\n", "\n    "))
