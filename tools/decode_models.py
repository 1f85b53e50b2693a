"""The models that a benchmark of decoding compares: a float model, and what quantizers make of it.

    python tools/decode_models.py 8b.onnx --folder models --recipes fp6,fp4,int4 --target ort-cuda --head --ort-int4

Those that are in the folder already are taken as they are. Each is made by a process of its own, several at a time.
`--head` quantizes the output head as all other weights: onnxruntime's quantizer does, presets leave it alone.
`--embedding` quantizes the embedding, which in tied models is the head.
"""

import argparse
import logging
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import onnxq
from onnxq.recipes import Match, Role, Rule, load_recipe

ORT_INT4 = "onnxruntime int4"


def prepared(
    model: Path,
    folder: Path,
    recipes: Iterable[str],
    target: str,
    *,
    roles: tuple[Role, ...] = (),
    ort_int4: bool = False,
    jobs: int = 1,
) -> dict[str, Path]:
    """Paths of all models by name, the float one first; the missing ones are made."""
    kinds = [*recipes, *([ORT_INT4] if ort_int4 else [])]
    paths = {kind: folder / f"{model.stem}-{Path(kind.replace(' ', '-')).stem}.onnx" for kind in kinds}
    missing = [kind for kind in kinds if not paths[kind].exists()]
    # Not forked: onnxruntime may have threads by now.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        calls = {pool.submit(make, kind, model, paths[kind], target, roles): kind for kind in missing}
        for call in as_completed(calls):
            print(f"{calls[call]}: made in {call.result():.1f} s", flush=True)
    return {"float": model} | paths


def make(kind: str, model: Path, output: Path, target: str, roles: tuple[Role, ...]) -> float:
    """Quantize with a recipe, or as onnxruntime does; the seconds it took."""
    started = time.perf_counter()
    if kind == ORT_INT4:
        _ort_int4(model, output)
    else:
        recipe = load_recipe(kind)
        if roles:
            recipe = recipe.with_rules(Rule(match=Match(role=roles), weight=recipe.rules[-1].weight))
        onnxq.quantize(model, recipe, output=output, target=target)
    return time.perf_counter() - started


def _ort_int4(model: Path, output: Path) -> None:
    """What onnxruntime's quantizer makes: MatMulNBits of 4 bits, symmetric, in blocks of 32, accuracy level 4."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger("onnxruntime.quantization").setLevel(logging.WARNING)
    quantizer = MatMulNBitsQuantizer(str(model), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(output), use_external_data_format=True)


def add_roles(parser: argparse.ArgumentParser) -> None:
    """Let a command line say what `prepared` takes as `roles`."""
    for role, which in (("head", "as onnxruntime's int4 does"), ("embedding", "which in tied models is the head")):
        told = f"quantize the {role} too, {which}"
        parser.add_argument(f"--{role}", dest="roles", action="append_const", const=role, default=[], help=told)


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--recipes", default="fp6,fp4,int4")
    parser.add_argument("--target", default="ort")
    add_roles(parser)
    parser.add_argument("--ort-int4", action="store_true")
    parser.add_argument("--jobs", type=int, default=4)
    asked = parser.parse_args()
    recipes = asked.recipes.split(",")
    how = {"roles": tuple(asked.roles), "ort_int4": asked.ort_int4, "jobs": asked.jobs}
    prepared(asked.model, asked.folder, recipes, asked.target, **how)


if __name__ == "__main__":
    main()
