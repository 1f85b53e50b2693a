import math

import pytest
from rich.console import Console

from onnxq.report import Activation, Entry, Report
from onnxq.report.terminal import bits_each, planned, summary

QUANTIZED = Entry(
    weight="layers.0.up",
    label="layers.0.up",
    op="MatMul",
    readers=("node",),
    shape=(64, 48),
    size_bytes=12_288,
    result_bytes=2_496,
    format="fp6_e2m3",
    spec="fp6_e2m3, per channel",
    sqnr_db=31.25,
)
EXACT = Entry(
    "zeros", "zeros", "com.microsoft::FusedMatMul", ("n",), (8, 8), 256, 80, "int8", "int8, per channel", math.inf
)
SKIPPED = Entry("embedding", "embedding", "Gather", ("look_up",), (100, 4), 1_600, 1_600, reason="embedding: off")


def report(*entries: Entry, **changes: object) -> Report:
    made = {"model": "m.onnx", "output": "o.onnx", "recipe": "fp6", "target": "ort", "model_bytes": 20_000}
    return Report(**(made | {"entries": entries, "output_bytes": 10_000, "seconds": 0.5} | changes))


def text(parts) -> str:
    console = Console(width=10_000)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def row(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).split()


def test_the_summary_has_a_row_for_each_format_and_the_rest():
    shown = text(summary(report(QUANTIZED, EXACT, SKIPPED)))
    assert row(shown, "fp6_e2m3") == ["1", "12,288", "2,496", "6.50", "31.2"]
    assert row(shown, "int8") == ["1", "256", "80", "10.00", "inf"]
    assert row(shown, "left as is") == ["1", "1,600", "1,600"]
    assert row(shown, "rest of the file") == ["5,856", "5,824"]
    assert row(shown, "file") == ["3", "20,000", "10,000"]


def test_the_summary_names_the_worst_weight_the_reasons_and_the_output():
    shown = text(summary(report(QUANTIZED, EXACT, SKIPPED, notes=("a platform",), warnings=("mind the gap",))))
    assert "Lowest SQNR: 31.2 dB, layers.0.up (fp6_e2m3)" in shown
    assert "Left as they are: 1 of 3 weights\n  1  embedding: off" in shown
    assert "Wrote o.onnx: 10 kB, 50% of 20 kB, in 0.5 s" in shown
    assert shown.endswith("note: a platform\nwarning: mind the gap")


ACTIVATIONS = (
    Activation("hidden", "MatMul", ("q", "k"), "uint8", "uint8, one scale, zero points"),
    Activation("inner", "MatMul", ("down",), "uint8", "uint8, one scale, zero points"),
    Activation("hidden", "MatMul", ("v",), reason="spike"),
)


def test_activations_are_counted_by_what_becomes_of_them():
    shown = text(summary(report(QUANTIZED, activations=ACTIVATIONS)))
    assert "Activations quantized: 2 of 3 (2 uint8, one scale, zero points)" in shown
    assert "Activations left as they are: 1 of 3\n  1  spike" in shown
    listed = text(planned(report(QUANTIZED, activations=ACTIVATIONS, output=None)))
    assert row(listed, "inner") == ["MatMul", "1", "uint8,", "one", "scale,", "zero", "points"]
    assert row(listed, "hidden") == ["MatMul", "2", "uint8,", "one", "scale,", "zero", "points"]


def test_a_conversion_of_activations_alone_wrote_something():
    shown = text(summary(report(SKIPPED, activations=ACTIVATIONS)))
    assert "Wrote o.onnx" in shown
    assert "Nothing was quantized" not in shown


def test_a_copy_is_called_one():
    assert "byte-identical copy" in text(summary(report(is_copy=True)))
    assert "Wrote o.onnx" in text(summary(report()))


def test_a_plan_has_a_row_for_each_weight_and_says_what_would_come_out():
    shown = text(planned(report(QUANTIZED, SKIPPED, output=None, output_bytes=0)))
    assert row(shown, "layers.0.up") == ["MatMul", "64x48", "12,288", "2,496", "fp6_e2m3,", "per", "channel"]
    assert row(shown, "embedding") == ["Gather", "100x4", "1,600", "1,600", "embedding:", "off"]
    assert row(shown, "2 weights") == ["13,888", "4,096", "1", "quantized"]
    assert "20 kB would become about 10.2 kB (1 of 2 weights)" in shown


@pytest.mark.parametrize("render", [summary, planned])
def test_a_model_without_weights_is_no_special_case_to_read(render):
    shown = text(render(report()))
    assert "0 of 0" not in shown
    assert "nan" not in shown


def test_names_and_reasons_are_text_not_markup():
    odd = Entry("[bold]w[/bold]", "[bold]w[/bold]", "MatMul", ("n",), (2, 2), 16, 16, reason="[red]no[/red]")
    shown = text(planned(report(odd)))
    assert "[bold]w[/bold]" in shown
    assert "[red]no[/red]" in shown


def test_bits_of_no_weight_are_nan():
    assert bits_each([QUANTIZED]) == 6.5
    assert math.isnan(bits_each([]))
