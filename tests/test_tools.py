"""The tools that print figures run, at the smallest size they take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_benchmark_of_the_conversion_measures_both_quantizers(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_quantize.py"), "--layers", "1", "--rounds", "1"]
    command += ["--recipes", "int4", "--folder", str(tmp_path), "--json", str(tmp_path / "result.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = json.loads((tmp_path / "result.json").read_text())["runs"]
    assert set(runs) == {"onnxruntime int4", "onnxq int4"}
    assert all(run["seconds"] > 0 and run["anonymous_mib"] > 0 for run in runs.values())
    assert "limit of anonymous memory" in done.stdout


@pytest.mark.slow
def test_the_table_of_steps_says_what_smooth_takes_back(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "equalize_table.py"), "--schemes", "w8a8", "--step", "80"]
    command += ["--samples", "8", "--json", str(tmp_path / "result.json")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    share = {(row["outliers"], row["step"]): row["share"] for row in rows}
    assert share["channels", "smooth"] > 0.99
    assert share["channels", "aweq"] > 0.99
    assert share["channels", ""] == share["spikes", ""] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "arguments", "rows"),
    [
        ("bench_decode.py", ["--recipes", "fp6", "--context", "8", "--steps", "2", "--rounds", "1"], ["float", "fp6"]),
        ("bench_cache.py", ["--windows", "1", "--formats", "int8", "--forms", "grouped"], ["grouped", "grouped"]),
    ],
)
def test_the_benchmarks_of_decoding_print_a_row_a_model(
    tool: str, arguments: list[str], rows: list[str], tmp_path: Path
) -> None:
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments, "--json", str(result)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split(" | ")[0].strip("| ") for line in done.stdout.splitlines() if line.startswith("| ")][1:] == rows
    found = json.loads(result.read_text())
    assert len(found["rows"] if isinstance(found, dict) else found) == len(rows)


@pytest.mark.slow
def test_the_page_of_decoding_shows_what_its_benchmarks_wrote(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    model, decoding, conversion = (str(tmp_path / name) for name in ("tiny.onnx", "tiny.json", "conversion.json"))
    run("samples/shapes/make.py", "tiny", "-o", model)
    sizes = ["--recipes", "fp6", "--batch", "1,3", "--context", "8", "--steps", "2", "--rounds", "1"]
    options = ["--ort-int4", "--head", "--folder", str(tmp_path), "--json", decoding]
    run("tools/bench_decode.py", model, *sizes, *options)
    printed = run("tools/bench_conversion.py", model, "-o", str(tmp_path / "out.onnx"), "--json", conversion)
    assert "times copying" in printed
    page = run("tools/decode_page.py", decoding, conversion)
    for row in json.loads(Path(decoding).read_text())["rows"]:
        assert f"{row['milliseconds']:.2f} ({row['tokens_per_second']:,.0f}; {row['times_float']:.2f})" in page
    assert page.count("| onnxruntime int4 |") == page.count("| `fp6` |") == 2
    assert f"{json.loads(Path(conversion).read_text())['times_copying']:.1f} times as long" in page
