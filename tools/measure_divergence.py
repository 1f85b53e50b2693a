"""What a recipe costs the sample language model beyond the noise of its text: the divergence of the predictions.

    python tools/measure_divergence.py fp6 fp6-gptq                          # about a minute each on two cores
    python tools/measure_divergence.py fp6-gptq --shifts 0,40000,80000       # calibrated on other windows

The loss on a text goes up and down with every code that is rounded otherwise: half of the tokens happen to be predicted
better. KL(model || quantized) has no such luck in it: it is a mean over all that could come next. Where little is lost,
it is what methods are to be compared by.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from language_model import CALIBRATION, FLOAT_ACTIVATIONS, MODEL, WINDOW, heldout

import onnxq
from onnxq.analysis.divergence import Divergence, Reference, Sums

BATCH = 8


def batches(limit: int | None) -> Iterator[np.ndarray]:
    """Held-out tokens, [windows, tokens]."""
    windows = heldout().astype(np.int64).reshape(-1, WINDOW)[:limit]
    yield from (windows[at : at + BATCH] for at in range(0, len(windows), BATCH))


def scores(path: Path, limit: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits and the tokens that came, batch by batch."""
    session = onnxq.session(path, accuracy_level=FLOAT_ACTIVATIONS)
    for tokens in batches(limit):
        (logits,) = session.run(None, {"input_ids": tokens})
        yield logits[:, :-1], tokens[:, 1:]


def measured(path: Path, reference: Reference, limit: int | None) -> Divergence:
    """How far a model is from the float model."""
    sums = Sums()
    for batch, (logits, _) in enumerate(scores(path, limit)):
        reference.compare(batch, logits, sums)
    return sums.result()


def main() -> None:
    """Measure each recipe and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="presets or recipe files")
    parser.add_argument("--shifts", default="0", help="tokens of the calibration text that are moved to its end")
    parser.add_argument("--limit", type=int, help="held-out windows; by default all 320")
    options = parser.parse_args()
    text = np.load(CALIBRATION)
    with tempfile.TemporaryDirectory() as folder:
        reference, data, output = Reference(Path(folder)), Path(folder, "text.npy"), Path(folder, "quantized.onnx")
        for logits, targets in scores(MODEL, options.limit):
            reference.learn(logits, targets)
        exact = measured(MODEL, reference, options.limit).loss
        print("| recipe | shift | nll added | KL | perplexity |\n| --- | --- | --- | --- | --- |", flush=True)
        for recipe in options.recipes:
            for shift in map(int, options.shifts.split(",")):
                np.save(data, np.roll(text, -shift))
                calibration = onnxq.Calibration(data)
                onnxq.quantize(MODEL, recipe, output=output, force=True, calibration=calibration)
                found = measured(output, reference, options.limit)
                added = f"{found.loss - exact:+.5f} | {found.kl:.5f} | {math.expm1(found.loss - exact):+.2%}"
                print(f"| `{recipe}` | {shift} | {added.replace('%', ' %')} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
