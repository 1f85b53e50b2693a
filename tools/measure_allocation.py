"""What allocating bits by sensitivity brings on the sample language model: the tables of docs/analysis.md.

    python tools/measure_allocation.py                       # everything: about ten minutes on two cores
    python tools/measure_allocation.py --step 8 --limit 4    # a quick look
    python tools/measure_allocation.py --json allocation.json

Layers are solved and judged on `calibration.npy` of `samples/code_lm`, and what comes of it is measured on
`heldout.npy`, which nothing has seen. Printed are

- the model quantized within the budget, and by one format for all of its weights, with codes, scales and zero points
  counted: the share of the loss that allocation takes back is that of the best single format of as many bits or
  up to a tenth of a bit more;
- how well the sum of what layers do alone tells the order of random assignments, as Spearman's rank correlation with
  their loss on every second held-out window, and how well the error of a weight tells what it does;
- how long a variant takes in one session, and when the model is loaded for it;
- on how many layers noise on small weights harms more than noise of the same power on large ones.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from language_model import CALIBRATION, MODEL, WINDOW, dated, heading, heldout, nll

import onnxq
from onnxq.analysis.allocation import spread
from onnxq.analysis.assignment import Layers
from onnxq.analysis.laboratory import Laboratory, laboratory
from onnxq.analysis.trial import trial
from onnxq.model.probe import runnable
from onnxq.model.segment import standing_in
from onnxq.passes.sequential import as_stored
from onnxq.recipes import Recipe, Rule
from onnxq.recipes.rungs import LADDER, rung
from onnxq.runtime.session import run, session

# One format for all, from somewhat fewer to somewhat more bits than the budget; fp32 scales as presets have them.
UNIFORM = ("int3-g128", "int3-g128, fp32 scales", "int3-g64", "int3-g32")
# A single format is compared with the allocation if it takes as many bits, or more by up to this.
_NEAR_BITS = 0.1


@dataclass(frozen=True)
class Row:
    """One model measured on the held-out tokens.

    Attributes:
        name: How its weights are quantized.
        bits: Of each element of the quantized weights, with scales and zero points.
        change: Of the mean negative log-likelihood of a token, in nats.
    """

    name: str
    bits: float
    change: float


def uniform(name: str, method: str) -> Recipe:
    """One format for all weights."""
    base, _, rest = name.partition(", ")
    made = rung(base, method)
    if not rest:
        return made
    specs = [rule.weight.model_copy(update={"scale": "fp32"}) for rule in made.rules if rule.weight]
    return Recipe(name=name, rules=tuple(Rule(weight=spec) for spec in specs))


def quantized(recipes: dict[str, Recipe], tokens: np.ndarray, samples: int, folder: Path) -> Iterator[Row]:
    """Convert the model by each recipe, layer by layer as `onnxq quantize --calib` does, and measure it."""
    exact = nll(MODEL, tokens)
    for name, recipe in recipes.items():
        data = onnxq.Calibration(CALIBRATION, samples=samples)
        report = onnxq.quantize(MODEL, recipe, output=folder / "q.onnx", force=True, calibration=data)
        stored = sum(each.result_bytes for each in report.quantized)
        elements = sum(math.prod(each.shape) for each in report.quantized)
        yield Row(name, 8 * stored / elements, nll(folder / "q.onnx", tokens) - exact)


def random_assignments(layers: Layers, tokens: np.ndarray, count: int, seed: int) -> list[tuple[float, float]]:
    """Predicted loss and change of the held-out loss of random choices for all weights."""
    rng, lab = np.random.default_rng(seed), layers.lab
    with tempfile.TemporaryDirectory() as folder:
        judge = trial(lab.swapping, tokens, Path(folder), sequence=WINDOW, batch=8, limit=None)
        found = []
        for number in range(count):
            chosen = [int(rng.integers(len(options))) for options in layers.options]
            made = layers.judge(f"random {number}", chosen, judge)
            found.append((made.predicted, made.loss_change))
    return found


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(column)) for column in np.array(pairs).T]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def sqnr_as_guide(layers: Layers) -> tuple[float, float]:
    """The lowest and highest rank correlation, over formats, of the error of a weight with what it does."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for each in layers.effects:
        pairs.setdefault(each.recipe, []).append((-each.weight_sqnr_db, each.kl))
    found = [spearman(one) for one in pairs.values()]
    return min(found), max(found)


def speed(lab: Laboratory, variants: int) -> tuple[float, float]:
    """Seconds for a variant on one window of 64 tokens: in one session, and when the model is loaded for each."""
    tokens = np.load(CALIBRATION)[:64].astype(np.int64)[None]
    weights = [(weight, weight.read() * np.float16(0.9)) for weight in lab.weights if weight.role == "linear"]
    weights = [pair for pair in weights if pair[0].obstacle is None][:variants]
    started = time.perf_counter()
    for pair in weights:
        with lab.swapping.replaced([pair]) as variant:
            swapped = variant(["logits"], {"input_ids": tokens})
    between = time.perf_counter()
    for weight, array in weights:
        with ExitStack() as stack:
            stack.enter_context(standing_in(lab.model, [(weight.tensor, as_stored(weight, array))]))
            opened = session(stack.enter_context(runnable(lab.model)))
            loaded = run(opened, ["logits"], {"input_ids": tokens})
    if not np.allclose(swapped[0], loaded[0], atol=1e-3):
        raise SystemExit("a swapped weight does not give what the loaded model gives")
    return (between - started) / len(weights), (time.perf_counter() - between) / len(weights)


def small_harm_more(limit: int, sqnr_db: float) -> tuple[int, int]:
    """On how many layers noise on small weights harms more than on large ones, of how many."""
    kinds = [
        onnxq.perturb(MODEL, CALIBRATION, kind=kind, sqnr_db=sqnr_db, limit=limit)
        for kind in ("inverse", "proportional")
    ]
    pairs = [(a.weight_kl, b.weight_kl) for a, b in zip(*(each.layers for each in kinds), strict=True)]
    return sum(a > b for a, b in pairs), len(pairs)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=3.25, help="the budget")
    parser.add_argument("--method", default="gptq", help="of all formats")
    parser.add_argument("--formats", default=",".join(LADDER), help="to choose among, comma-separated")
    parser.add_argument("--samples", type=int, default=128, help="windows of 512 tokens to calibrate on")
    parser.add_argument("--limit", type=int, default=16, help="windows of 256 tokens to judge layers on")
    parser.add_argument("--step", type=int, default=1, help="measure on every n-th held-out window")
    parser.add_argument("--assignments", type=int, default=20, help="random ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random assignments")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    about = dated()
    print(heading(about), flush=True)
    tokens = heldout(options.step)
    calibration = onnxq.Calibration(CALIBRATION, samples=options.samples)
    formats = options.formats.split(",")
    with (
        laboratory(
            MODEL, CALIBRATION, formats, method=options.method, calibration=calibration, limit=options.limit
        ) as lab,
        tempfile.TemporaryDirectory() as folder,
    ):
        layers = Layers(lab)
        print(f"{lab.trial.runs} variants, {lab.trial.run_seconds / lab.trial.runs:.2f} s each", flush=True)
        found = spread(layers, int(options.bits * layers.elements / 8))
        pairs = random_assignments(layers, heldout(2 * options.step), options.assignments, options.seed)
        order = spearman(pairs)
        print(f"\nSpearman of {len(pairs)} random assignments: {order:.3f}", flush=True)
        low, high = sqnr_as_guide(layers)
        print(f"of the errors of weights with their KL, by format: {low:.2f} to {high:.2f}", flush=True)
        swapping, loading = speed(lab, 20)
        print(f"a variant on 64 tokens: {swapping:.3f} s in one session, {loading:.3f} s when loaded", flush=True)
        recipes = {found.best.name: found.recipe} | {name: uniform(name, options.method) for name in UNIFORM}
        print("\n| weights | bits | held-out nll |\n| --- | --- | --- |", flush=True)
        rows = []
        for row in quantized(recipes, tokens, options.samples, Path(folder)):
            rows.append(row)
            print(f"| {row.name} | {row.bits:.3f} | +{row.change:.4f} |", flush=True)
    near = [row for row in rows[1:] if rows[0].bits <= row.bits <= rows[0].bits + _NEAR_BITS]
    best = min(near, key=lambda row: row.change, default=None)
    share = 1 - rows[0].change / best.change if best else None
    if best:
        print(f"\nof what {best.name} loses with {best.bits:.3f} bits, {share:.1%} is taken back")
    else:
        print("\nno single format takes as many bits")
    worse, layers_count = small_harm_more(options.limit // 4 or 1, 20.0)
    print(f"noise on small weights harms more on {worse} of {layers_count} layers")
    if options.json:
        made = {
            "about": about,
            "rows": [asdict(row) for row in rows],
            "share": share,
            "spearman": order,
            "sqnr_spearman": [low, high],
            "assignments": pairs,
            "seconds": {"swapping": swapping, "loading": loading},
            "small_harm_more": [worse, layers_count],
            "allocation": found.to_dict(),
        }
        options.json.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
