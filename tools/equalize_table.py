"""What steps against outliers take back, on models with outliers: the table of docs/equalize.md.

    python tools/equalize_table.py                       # everything: about a quarter of an hour on two cores
    python tools/equalize_table.py --step 16             # every sixteenth held-out window
    python tools/equalize_table.py --schemes w8a8        # one of the schemes

`samples/code_lm/outliers.py` makes two models that compute what `samples/code_lm/model.onnx` computes: one with
channels that are many times as large as the others, one with spikes at the first token of two layers. Each is
quantized with every step, calibrated on `calibration.npy`, and measured on `heldout.npy`; `none` is the model itself. A
share is (nll without steps - nll) / (nll without steps - nll of the float model): 100 % is the float model, and below
zero a step hurts. With GPTQ, the nll without steps is that of rounding to nearest; a scheme with GPTQ is measured
together with the one that it is compared with (`--schemes w4a4,w4a4-gptq`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from language_model import CALIBRATION, MODEL, dated, heading, heldout, nll, with_outliers

import onnxq
from onnxq.recipes import parse_recipe

_HEADER = ("outliers", "weights and activations", "step", "nll added", "share taken back")

# What the rule says.
SCHEMES = {
    "w8a8": "weight: {format: int8}, activation: {format: int8}",
    "w4a4-fp": "weight: {format: fp4_e2m1}, activation: {format: fp4_e2m1}",
    "w8a8-gptq": "weight: {format: int8, method: gptq}, activation: {format: int8}",
    "w4a4-fp-gptq": "weight: {format: fp4_e2m1, method: gptq}, activation: {format: fp4_e2m1}",
    "w4a4-static": "weight: {format: int4}, activation: {format: int4}",
    "w4a4-static-gptq": "weight: {format: int4, method: gptq}, activation: {format: int4}",
    "w8a8-mse": "weight: {format: int8, method: gptq}, activation: {format: int8, range: mse}",
    "w4a4-fp-mse": "weight: {format: fp4_e2m1, method: gptq}, activation: {format: fp4_e2m1, range: mse}",
    "w4a4-static-mse": "weight: {format: int4, method: gptq}, activation: {format: int4, range: mse}",
    "w4a4": "weight: {format: int4}, activation: {format: int4, granularity: token}",
    "w4a4-gptq": "weight: {format: int4, method: gptq}, activation: {format: int4, granularity: token}",
    "w4a4-clip": (
        "weight: {format: int4, method: gptq}, activation: {format: int4, granularity: token, clip_ratio: 0.9}"
    ),
    "w4a4-zero": (
        "weight: {format: int4, method: gptq}, "
        "activation: {format: uint4, symmetric: false, granularity: token, clip_ratio: 0.9}"
    ),
    "a4": "activation: {format: int4, granularity: token}",
    "a4-clip": "activation: {format: int4, granularity: token, clip_ratio: 0.9}",
    "a4-zero": "activation: {format: uint4, symmetric: false, granularity: token}",
    "a4-both": "activation: {format: uint4, symmetric: false, granularity: token, clip_ratio: 0.9}",
    "a4-fp": "activation: {format: fp4_e2m1, granularity: token}",
    "a4-fp-clip": "activation: {format: fp4_e2m1, granularity: token, clip_ratio: 0.9}",
    "w4": "weight: {format: int4}",
    "w4-gptq": "weight: {format: int4, method: gptq}",
    "w4a8-gptq": "weight: {format: int4, method: gptq}, activation: {format: int8, granularity: token}",
    # INT8 for the two layers whose inputs have the spikes.
    "w4a4-mixed": (
        "weight: {format: int4, method: gptq}, "
        "activation: {format: uint4, symmetric: false, granularity: token, clip_ratio: 0.9}}\n"
        "- {match: {name: [node_linear_13, node_linear_27]}, "
        "weight: {format: int8}, activation: {format: int8, granularity: token}"
    ),
}
# Shares are those of what another scheme adds without steps.
BASES = {
    "w8a8-gptq": "w8a8",
    "w4a4-fp-gptq": "w4a4-fp",
    "w4a4-static-gptq": "w4a4-static",
    "w8a8-mse": "w8a8",
    "w4a4-fp-mse": "w4a4-fp",
    "w4a4-static-mse": "w4a4-static",
    "w4a4-gptq": "w4a4",
    "w4a4-clip": "w4a4",
    "w4a4-zero": "w4a4",
    "w4-gptq": "w4a4",
    "w4a8-gptq": "w4a4",
    "w4a4-mixed": "w4a4",
    "a4-clip": "a4",
    "a4-zero": "a4",
    "a4-both": "a4",
    "a4-fp": "a4",
    "a4-fp-clip": "a4",
}
ABOUT = {
    "w8a8": "INT8, one scale for the activation",
    "w8a8-gptq": "INT8 with GPTQ, one scale for the activation",
    "w4a4-fp": "FP4 E2M1, one scale for the activation",
    "w4a4-fp-gptq": "FP4 E2M1 with GPTQ, one scale for the activation",
    "w4a4-static": "INT4, one scale for the activation",
    "w4a4-static-gptq": "INT4 with GPTQ, one scale for the activation",
    "w8a8-mse": "INT8 with GPTQ, one scale for the activation, range: mse",
    "w4a4-fp-mse": "FP4 E2M1 with GPTQ, one scale for the activation, range: mse",
    "w4a4-static-mse": "INT4 with GPTQ, one scale for the activation, range: mse",
    "w4a4": "INT4, a scale for each token",
    "w4a4-gptq": "INT4 with GPTQ, a scale for each token",
    "w4a4-clip": "INT4 with GPTQ, a scale for each token, clipped at 0.9",
    "w4a4-zero": "INT4 with GPTQ, a scale and a zero point for each token, clipped at 0.9",
    "a4": "float and INT4, a scale for each token",
    "a4-clip": "float and INT4, a scale for each token, clipped at 0.9",
    "a4-zero": "float and INT4, a scale and a zero point for each token",
    "a4-both": "float and INT4, a scale and a zero point for each token, clipped at 0.9",
    "a4-fp": "float and FP4 E2M1, a scale for each token",
    "a4-fp-clip": "float and FP4 E2M1, a scale for each token, clipped at 0.9",
    "w4": "INT4 and float",
    "w4-gptq": "INT4 with GPTQ and float",
    "w4a8-gptq": "INT4 with GPTQ and INT8, a scale for each token",
    "w4a4-mixed": "as above, INT8 for the two layers with spikes",
}
# (outliers, scheme): steps, the first of them none.
STEPS = {
    ("channels", "w8a8"): ["", "smooth", "smooth, alpha: [0.5, 0.65, 0.8]", "aweq", "shift"],
    ("channels", "w4a4-fp"): ["", "shift", "smooth", "aweq"],
    ("channels", "w4a4"): [
        "",
        "disassemble, ratio: 0.02",
        "disassemble",
        "disassemble, ratio: 0.1",
        "disassemble, assemble: true",
        "smooth",
        "aweq",
        "rotate, sites: residual",
        "rotate, sites: [residual, online]",
        "rotate, choose: false",
        "rotate",
    ],
    ("channels", "w4a4-gptq"): ["", "smooth", "rotate, choose: false", "rotate"],
    ("channels", "w4a4-clip"): ["rotate"],
    ("channels", "w4a4-zero"): ["rotate"],
    ("spikes", "w8a8"): ["", "smooth", "aweq", "disassemble, insert: true", "rotate"],
    ("spikes", "w8a8-gptq"): ["rotate"],
    ("spikes", "w8a8-mse"): ["rotate"],
    ("spikes", "w4a4-fp"): ["", "rotate"],
    ("spikes", "w4a4-fp-gptq"): ["rotate"],
    ("spikes", "w4a4-fp-mse"): ["rotate"],
    ("spikes", "w4a4-static"): ["", "rotate"],
    ("spikes", "w4a4-static-gptq"): ["rotate"],
    ("spikes", "w4a4-static-mse"): ["rotate"],
    ("spikes", "w4a4"): ["", "smooth", "rotate, choose: false", "rotate"],
    ("spikes", "w4a4-gptq"): ["", "rotate"],
    ("spikes", "w4a4-clip"): ["rotate"],
    ("spikes", "w4a4-zero"): ["rotate"],
    ("none", "w8a8"): [""],
    ("none", "w8a8-gptq"): ["rotate"],
    ("none", "w4a4-fp"): [""],
    ("none", "w4a4-fp-gptq"): ["rotate"],
    ("none", "w4a4-static"): [""],
    ("none", "w4a4-static-gptq"): ["rotate"],
    ("none", "w4a4"): ["", "smooth", "rotate, choose: false", "rotate"],
    ("none", "w4a4-gptq"): ["", "rotate"],
    ("none", "w4a4-clip"): ["rotate"],
    ("none", "w4a4-zero"): ["rotate"],
    ("none", "a4"): ["", "rotate, choose: false"],
    ("none", "a4-clip"): ["rotate, choose: false"],
    ("spikes", "w4-gptq"): ["rotate"],
    ("spikes", "w4a4-mixed"): ["rotate"],
    ("none", "w4-gptq"): ["rotate"],
    ("none", "w4a8-gptq"): ["rotate"],
    ("none", "a4-zero"): ["rotate, choose: false"],
    ("none", "a4-both"): ["rotate, choose: false"],
    ("none", "a4-fp"): ["rotate, choose: false"],
    ("none", "a4-fp-clip"): ["rotate, choose: false"],
    ("none", "w4"): ["", "rotate, sites: [residual, value], choose: false", "rotate, sites: [residual, value]"],
}


@dataclass(frozen=True)
class Row:
    """One step on one model.

    Attributes:
        outliers: Which model.
        scheme: How it is quantized.
        step: What is done before.
        added: Mean negative log-likelihood a token above that of the float model, in nats.
        share: Of what quantizing without steps adds that is taken back.
        places: Activations that were changed.
        seconds: Of the conversion.
    """

    outliers: str
    scheme: str
    step: str
    added: float
    share: float
    places: int
    seconds: float


def measure(kinds: Sequence[str], schemes: Sequence[str], samples: int, step: int, folder: Path) -> Iterator[Row]:
    """All rows of some kinds of outliers and some schemes."""
    tokens, data = heldout(step), onnxq.Calibration(CALIBRATION, samples=samples)
    exact = nll(MODEL, tokens)
    lost: dict[tuple[str, str], float] = {}
    for outliers, scheme in [key for key in STEPS if key[0] in kinds and key[1] in schemes]:
        model, output = folder / f"{outliers}.onnx", folder / "quantized.onnx"
        if outliers == "none":
            model = MODEL
        elif not model.exists():
            with_outliers(model, spikes=outliers == "spikes")
        for text in STEPS[outliers, scheme]:
            steps = f"equalize: [{{method: {text}}}]\n" if text else ""
            recipe = parse_recipe(f"{steps}rules:\n- {{{SCHEMES[scheme]}}}")
            started = time.perf_counter()
            report = onnxq.quantize(model, recipe, output=output, force=True, calibration=data)
            seconds = time.perf_counter() - started
            added = nll(output, tokens) - exact
            base = lost.setdefault((outliers, BASES.get(scheme, scheme)), added)
            places = sum(each.done is not None for each in report.changes)
            yield Row(outliers, scheme, text, added, 1 - added / base, places, seconds)


def main() -> None:
    """Measure, print the table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = list(dict.fromkeys(outliers for outliers, _ in STEPS))
    parser.add_argument("--outliers", default=",".join(kinds), help="comma-separated; by default all")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="comma-separated; by default all")
    parser.add_argument("--samples", type=int, default=32, help="windows of 512 tokens to calibrate on; by default 32")
    parser.add_argument("--step", type=int, default=4, help="measure every n-th held-out window; by default every 4th")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    about = dated()
    print(heading(about))
    print(f"\n| {' | '.join(_HEADER)} |\n|{' --- |' * len(_HEADER)}", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(
            options.outliers.split(","), options.schemes.split(","), options.samples, options.step, Path(folder)
        ):
            rows.append(row)
            step = f"`{row.step}`" if row.step else "none"
            share = f"{row.share:.1%}".replace("%", " %") if row.step or row.scheme in BASES else ""
            print(f"| {row.outliers} | {ABOUT[row.scheme]} | {step} | {row.added:+.4f} | {share} |", flush=True)
    if options.json:
        made = {"about": about, "step": options.step, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(made, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
