"""Make the code_lm sample: `data` splits and tokenizes, `fit` trains (use a GPU), `export` writes model.onnx.

python samples/code_lm/train.py data --library /usr/lib/python3.13 --library /usr/lib/python3.12
python samples/code_lm/train.py fit --max-minutes 5 --compile
python samples/code_lm/train.py export
"""

import argparse
import sysconfig
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data", help="write tokenizer.json, calibration.npy, heldout.npy and CACHE/train.npy")
    data.add_argument("--library", type=Path, action="append", help="a standard library folder; evaluation: the first")
    data.add_argument("--vocabulary", type=int, default=4096)
    fit = commands.add_parser("fit", help="train on CACHE/train.npy and write CHECKPOINT")
    fit.add_argument("--max-minutes", type=float, default=5.0)
    fit.add_argument("--max-steps", type=int, default=100_000)
    fit.add_argument("--batch", type=int, default=64, help="crops of 512 tokens a step")
    fit.add_argument("--learning-rate", type=float, default=4e-3)
    fit.add_argument("--dropout", type=float, default=0.3)
    fit.add_argument("--evaluate-every", type=int, default=500, metavar="STEPS")
    fit.add_argument("--compile", action="store_true", help="use torch.compile")
    fit.add_argument("--tiny", action="store_true", help="a two-layer model of width 64, to try the script out")
    export = commands.add_parser("export", help="write model.onnx and float.json and print continuations")
    for command in (data, fit, export):
        command.add_argument("--sample", type=Path, default=HERE, help="folder of the sample's files")
        command.add_argument("--cache", type=Path, default=HERE.parents[1] / "build" / "code_lm")
    for command in (fit, export):
        command.add_argument("--checkpoint", type=Path, help="default: CACHE/checkpoint")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.command == "data":
        from data import prepare

        libraries = arguments.library or [Path(sysconfig.get_path("stdlib"))]
        prepare(libraries, arguments.vocabulary, arguments.sample, arguments.cache)
        return
    checkpoint = arguments.checkpoint or arguments.cache / "checkpoint"
    if arguments.command == "fit":
        from fit import Config, Schedule, fit

        config = Config(dropout=arguments.dropout)
        if arguments.tiny:
            config = replace(config, width=64, layers=2, heads=4, kv_heads=2, feed_forward=128)
        schedule = Schedule(
            max_minutes=arguments.max_minutes,
            max_steps=arguments.max_steps,
            batch=arguments.batch,
            learning_rate=arguments.learning_rate,
            evaluate_every=arguments.evaluate_every,
            compile=arguments.compile,
        )
        fit(arguments.sample, arguments.cache, checkpoint, config, schedule)
    else:
        from export import export

        export(checkpoint, arguments.sample)


if __name__ == "__main__":
    main()
