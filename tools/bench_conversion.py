"""What it takes to quantize a model of many gigabytes, beside copying its file.

    python samples/shapes/make.py llama-3-8b -o 8b.onnx
    python tools/bench_conversion.py 8b.onnx -o 8b-fp6.onnx --target ort-cuda

Prints wall time of both, and the highest anonymous memory of `onnxq quantize` (what it holds beyond mapped files), and
its highest resident memory (with pages of mapped files, which the system takes back when it needs them). The copy is
made first, of a file that is in the page cache, is on the disk when its clock stops, and is removed.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bench_quantize import measure

from onnxq.model.load import guard

_COPY = "copy.partial"


def copy_seconds(files: list[Path], folder: Path) -> float:
    """Time of copying files into a folder, to the disk."""
    copied = folder / _COPY
    started = time.perf_counter()
    for file in files:
        shutil.copyfile(file, copied)
        with copied.open("rb") as written:
            os.fsync(written.fileno())
    seconds = time.perf_counter() - started
    copied.unlink()
    return seconds


def data_files(model: Path) -> list[Path]:
    """The model and the files of its external data."""
    return [model, *(file.path for file in guard(model).data.values())]


def main() -> None:
    """Copy, quantize, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--recipe", default="fp6")
    parser.add_argument("--target", default="ort")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    files = data_files(options.model)
    found: dict[str, Any] = {"recipe": f"the preset `{options.recipe}`"}
    found |= {"bytes": sum(file.stat().st_size for file in files), "processors": os.cpu_count() or 1}
    found["copy_seconds"] = copy_seconds(files, options.output.parent)
    print(f"{found['bytes'] / 1e9:.2f} GB copied in {found['copy_seconds']:.1f} s", flush=True)
    command = ["quantize", str(options.model), "-o", str(options.output), "--force"]
    command += ["--recipe", options.recipe, "--target", options.target]
    found |= measure([sys.executable, "-m", "onnxq", *command])
    found["times_copying"] = found["seconds"] / found["copy_seconds"]
    print(f"{options.recipe}, {options.target}: {found['seconds']:.1f} s on {found['processors']:.0f} processors, "
          f"{found['times_copying']:.1f} times copying; {found['anonymous_mib']:.0f} MiB anonymous, "
          f"{found['resident_mib']:.0f} MiB resident")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
