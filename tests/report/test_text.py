import pytest
from rich.console import Console

from onnxq.report.text import Name, seconds_text, shorten, size_text, table

LONG = "model.layers.17.self_attn.q_proj.weight_quantized"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (10_681_086, "10.7 MB"),
        (999_600, "1 MB"),
        (3 << 40, "3,299 GB"),
    ],
)
def test_a_size_has_three_digits_and_a_unit(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.168, "0.17 s"), (9.94, "9.9 s"), (42.4, "42 s"), (200, "3 min 20 s")])
def test_seconds(seconds, text):
    assert seconds_text(seconds) == text


@pytest.mark.parametrize("width", [1, 2, 12, 20, 48, 49, 60])
def test_a_long_name_keeps_its_ends(width):
    short = shorten(LONG, width)
    assert len(short) == min(width, len(LONG))
    head, _, tail = short.partition("…")
    assert LONG.startswith(head)
    assert LONG.endswith(tail)


def rendered(width: int) -> list[str]:
    made = table({"weight": "name", "bytes": "number", "reason": "text"})
    made.add_row(Name(LONG), "1,000,000", "because of one thing and another")
    console = Console(width=width)
    with console.capture() as captured:
        console.print(made)
    return captured.get().splitlines()


def test_a_narrow_table_shortens_names_and_wraps_texts_but_keeps_numbers():
    lines = rendered(60)
    assert all(len(line) <= 60 for line in lines)
    assert "…" in lines[2]
    assert "1,000,000" in lines[2]
    assert len(lines) > 3


def test_a_wide_table_shows_everything():
    assert rendered(10_000)[2].split("  ")[0] == LONG
