"""What models can still do in few bits: the tables of abilities and robustness of docs/analysis.md.

    python tools/measure_checks.py                    # everything: about twenty minutes on two cores
    python tools/measure_checks.py --limit 32         # a quick look

The language model of `samples/code_lm` predicts the next token of `heldout.npy`, and copies random tokens from its own
context. The classifiers of `samples/digits` see the test images, the same with noise, and the same attacked by one step
along the gradient (FGSM) of the float model, so all models of a row see one and the same attack. Gradients are central
differences along each pixel, through onnxruntime.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from language_model import CALIBRATION, FLOAT_ACTIVATIONS, HELDOUT, MODEL, dated, heading

import onnxq
from onnxq.recipes.rungs import rung

DIGITS = Path(__file__).parents[1] / "samples" / "digits"
# From many bits to few, rounded to nearest and by GPTQ.
FORMATS = {"8": "int8", "6": "fp6", "4": "int4-g32", "3": "int3-g32", "2": "int2-g32"}
METHODS = ("rtn", "gptq")


def variants(model: Path, data: Path, folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Bits, method and file of the float model and of each conversion of it."""
    yield "16", "", model
    calibration = onnxq.Calibration(data, cache=folder / f"{model.stem}.safetensors")
    for bits, name in FORMATS.items():
        for method in METHODS:
            output = folder / f"{model.stem}-{name}-{method}.onnx"
            onnxq.quantize(model, rung(name, method), output=output, calibration=calibration, force=True)
            yield bits, f"{name}, {method}", output


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="windows of held-out tokens, and test images; by default all")
    parser.add_argument("--strength", type=float, default=0.1, help="of noise and attacks, as a share of the range")
    options = parser.parse_args()
    print(heading(dated()))
    with tempfile.TemporaryDirectory() as folder:
        print("\n| bits | weights | next token | copying |\n| --- | --- | --- | --- |", flush=True)
        for bits, name, path in variants(MODEL, CALIBRATION, Path(folder)):
            can = onnxq.abilities(path, HELDOUT, limit=options.limit, accuracy_level=FLOAT_ACTIVATIONS, prompts=64)
            print(f"| {bits} | {name} | {can.next_token:.1%} | {can.copying:.1%} |".replace("%", " %"), flush=True)
        for kind in ("resnet", "vit"):
            print(f"\n| bits | weights of {kind} | clean | noise | attacked |\n|{' --- |' * 5}", flush=True)
            source = DIGITS / f"{kind}.onnx"
            made = onnxq.attack(source, DIGITS / "test.npz", strength=options.strength, limit=options.limit)
            for bits, name, path in variants(source, DIGITS / "calibration.npz", Path(folder)):
                found = onnxq.robustness(path, made, accuracy_level=FLOAT_ACTIVATIONS)
                shares = " | ".join(f"{each:.1%}" for each in (found.clean, found.noise, found.attacked))
                print(f"| {bits} | {name} | {shares} |".replace("%", " %"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
