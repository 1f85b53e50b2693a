"""The command `onnxq`."""

import sys

from onnxq.cli.allocate import allocate
from onnxq.cli.app import app, run
from onnxq.cli.calibrate import calibrate
from onnxq.cli.catalog import formats, recipes
from onnxq.cli.convert import plan, quantize
from onnxq.cli.demo import demo
from onnxq.cli.doctor import doctor
from onnxq.cli.export import export
from onnxq.cli.generate import generate
from onnxq.cli.help import with_examples
from onnxq.cli.inspect import inspect
from onnxq.cli.measure import compare, evaluate
from onnxq.cli.sensitivity import sensitivity

__all__ = ["app", "main"]

_CONVERT, _JUDGE, _LEARN = "Convert", "Run and judge", "Learn"

app.command(
    rich_help_panel=_CONVERT,
    cls=with_examples(
        "onnxq quantize model.onnx -o small.onnx",
        "onnxq quantize model.onnx -o small.onnx --recipe int4 --exclude '*lm_head*'",
        "onnxq quantize model.onnx -o small.onnx --recipe mine.yaml --report what.html",
        "onnxq quantize model.onnx -o small.onnx --recipe int4-gptq --calib tokens.npy --seq 256",
        "onnxq quantize model.onnx --recipe fp4 --dry-run",
    ),
)(quantize)
app.command(
    rich_help_panel=_CONVERT,
    cls=with_examples(
        "onnxq calibrate model.onnx --calib tokens.npy --seq 256 -o stats.safetensors",
        "onnxq quantize model.onnx -o small.onnx --recipe int3-best --stats stats.safetensors",
    ),
)(calibrate)
app.command(
    rich_help_panel=_CONVERT,
    cls=with_examples("onnxq plan model.onnx --recipe fp4", "onnxq plan model.onnx --include '*mlp*' --json"),
)(plan)
app.command(rich_help_panel=_CONVERT, cls=with_examples("onnxq inspect model.onnx"))(inspect)
app.command(
    rich_help_panel=_CONVERT,
    cls=with_examples(
        "onnxq export Llama-3.2-1B -o llama",
        "onnxq export Llama-3.2-1B -o llama --dtype fp16 --task text-generation-with-past",
        "onnxq quantize llama/model.onnx -o llama/fp6.onnx",
    ),
)(export)
app.command(
    rich_help_panel=_JUDGE,
    cls=with_examples(
        "onnxq evaluate small.onnx --tokens heldout.npy",
        "onnxq evaluate small.onnx --tokens heldout.npy --accuracy-level 1",
        "onnxq evaluate small.onnx --data test.npz --labels labels",
        "onnxq evaluate small.onnx --data test.npz --checks --attack model.onnx",
    ),
)(evaluate)
app.command(
    rich_help_panel=_JUDGE,
    cls=with_examples(
        "onnxq compare model.onnx small.onnx --data heldout.npy",
        "onnxq compare model.onnx small.onnx --data test.npz --limit 64 --worst 20",
    ),
)(compare)
app.command(
    rich_help_panel=_JUDGE,
    cls=with_examples(
        "onnxq sensitivity model.onnx --data calibration.npy -r int3-g64 -r fp4",
        "onnxq sensitivity model.onnx --data calibration.npy --view noise --sqnr 20",
        "onnxq sensitivity model.onnx --data calibration.npy --view spikes",
    ),
)(sensitivity)
app.command(
    rich_help_panel=_CONVERT,
    cls=with_examples(
        "onnxq allocate model.onnx --calib calibration.npy --bits 3.25 -o mixed.yaml",
        "onnxq allocate model.onnx --calib calibration.npy --size 40MB -f int3-g64 -f fp4 -f fp6 -o mixed.yaml",
        "onnxq quantize model.onnx -o small.onnx --recipe mixed.yaml --calib calibration.npy",
    ),
)(allocate)
app.command(
    rich_help_panel=_JUDGE,
    cls=with_examples(
        "onnxq generate small.onnx --tokenizer tokenizer.json --prompt 'import os'",
        "onnxq generate small.onnx --tokenizer tokenizer.json -p 'def ' --temperature 0.7 --seed 1",
        "onnxq generate llama/fp6.onnx -p 'Once upon a time' -p 'The answer is'",
    ),
)(generate)
app.command(rich_help_panel=_LEARN, cls=with_examples("onnxq demo", "onnxq demo --full --keep models"))(demo)
app.command(rich_help_panel=_LEARN, cls=with_examples("onnxq recipes", "onnxq recipes fp4 > mine.yaml"))(recipes)
app.command(rich_help_panel=_LEARN, cls=with_examples("onnxq formats"))(formats)
app.command(rich_help_panel=_LEARN, cls=with_examples("onnxq doctor", "onnxq doctor --json"))(doctor)


def main() -> None:
    """Run the command line of this process and end it."""
    sys.exit(run())
