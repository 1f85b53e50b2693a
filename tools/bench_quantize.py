"""How fast and in how much memory `onnxq quantize` converts a large model, beside onnxruntime's own quantizer.

    python tools/bench_quantize.py                 # 3 GiB of float32 weights, needs 8 GB of disk in --folder
    python tools/bench_quantize.py --layers 4      # a quick look

Every conversion is a process of its own over the same file; what is printed are wall time, weights a second, the
highest anonymous memory (what the process holds beyond mapped files), and the ratio to onnxruntime's
MatMulNBitsQuantizer, which rounds to nearest in INT4 with groups of 32 as the recipe `int4` does. All runs alternate,
`--rounds` times; the median counts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_WIDTH = 4096
_OTHERS = """
import sys
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
import onnx
config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=False, bits=4)
quantizer = MatMulNBitsQuantizer(onnx.load(sys.argv[1]), algo_config=config)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""


def make_model(path: Path, layers: int) -> None:
    """A chain of [4096, 4096] products; Gaussian weights, another scale in each layer."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((_WIDTH, _WIDTH), np.float32) * np.float32(0.02)
    tensors, nodes = [], []
    with path.with_suffix(".data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[_WIDTH, _WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.with_suffix(".data").name, "offset": file.tell(), "length": base.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            np.roll(base, 977 * layer).tofile(file)
            nodes.append(
                helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"x{layer + 1}"], name=f"layer{layer}")
            )
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", _WIDTH]) for name in ("x0", f"x{layers}")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())


def measure(command: list[str]) -> dict[str, float]:
    """Wall time, and the highest anonymous and resident memory of a process, looked at every 10 ms."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    anonymous = resident = 0
    while process.poll() is None:
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            anonymous = max(anonymous, int(status.get("RssAnon", "0 kB").split()[0]))
            resident = max(resident, int(status.get("VmRSS", "0 kB").split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.01)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command[:4])} … ended with {process.returncode}")
    return {
        "seconds": time.perf_counter() - started,
        "anonymous_mib": anonymous / 1024,
        "resident_mib": resident / 1024,
    }


def main() -> None:
    """Build the model, run everything, print a table and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48, help="of 64 MiB each (48: 3 GiB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recipes", default="int4,fp6,fp4", help="after each other")
    parser.add_argument("--folder", type=Path, help="where the models go; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    weights = options.layers * _WIDTH * _WIDTH
    recipes = options.recipes.split(",")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = Path(folder) / "model.onnx"
        make_model(model, options.layers)
        commands = {"onnxruntime int4": [sys.executable, "-c", _OTHERS, str(model), str(Path(folder) / "theirs.onnx")]}
        for recipe in recipes:
            output = str(Path(folder) / f"{recipe}.onnx")
            arguments = ["quantize", str(model), "-o", output, "--recipe", recipe, "--force"]
            commands[f"onnxq {recipe}"] = [sys.executable, "-m", "onnxq", *arguments]
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                for old in Path(folder).glob("theirs*"):
                    old.unlink()
                runs[name].append(measure(command))
    table = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    largest = _WIDTH * _WIDTH * 4 / 2**20
    print(f"{weights * 4 / 2**30:.2f} GiB of float32 in {options.layers} weights, median of {options.rounds} rounds")
    print(f"{'':18}{'seconds':>9}{'M weights/s':>13}{'anon. MiB':>11}{'x onnxruntime':>15}{'x int4':>8}")
    reference = table["onnxruntime int4"]["seconds"]
    int4 = table.get("onnxq int4", table["onnxruntime int4"])["seconds"]
    for name, row in table.items():
        row["of_onnxruntime"], row["of_int4"] = row["seconds"] / reference, row["seconds"] / int4
        print(
            f"{name:18}{row['seconds']:9.2f}{weights / row['seconds'] / 1e6:13.1f}{row['anonymous_mib']:11.0f}"
            f"{row['of_onnxruntime']:15.2f}{row['of_int4']:8.2f}"
        )
    print(f"limit of anonymous memory (R13): {512 + 3 * largest:.0f} MiB")
    if options.json:
        options.json.write_text(
            json.dumps({"layers": options.layers, "onnx": onnx.__version__, "runs": table}, indent=1)
        )


if __name__ == "__main__":
    main()
