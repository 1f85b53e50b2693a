"""Find the layers that quantization changed most: SQNR of every tensor of an INT4 model against the float one.

Run it from anywhere:

    python samples/compare_layers.py
    python samples/compare_layers.py --recipe fp6 --worst 20
"""

import argparse
from pathlib import Path

import onnxq

FOLDER = Path(__file__).parent / "code_lm"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--recipe", default="int4", help="a preset or a .yaml file")
parser.add_argument("--output", type=Path, default=Path("compared.onnx"))
parser.add_argument("--worst", type=int, default=8, help="layers shown")
options = parser.parse_args()

model = FOLDER / "model.onnx"
onnxq.quantize(model, options.recipe, output=options.output, force=True)
# Only the weights are different, not how exactly products are computed: float activations in INT4 kernels.
found = onnxq.compare(model, options.output, data=FOLDER / "calibration.npy", limit=2, accuracy_level=1)
for output in found.outputs:
    print(f"output {output.name}: {output.sqnr_db:.1f} dB, cosine {output.cosine:.5f}")
print(f"{len(found.layers)} tensors inside, the worst first:")
for layer in found.worst(options.worst):
    print(f"{layer.sqnr_db:7.1f} dB  {layer.operator:12} {layer.name}")
