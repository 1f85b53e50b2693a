"""Draw docs/results.md: what each preset costs against the bits it takes, as a picture for the README.

    python tools/draw_results.py

It writes docs/images/results.svg, and needs matplotlib.
"""

import re
import sys
from pathlib import Path

import matplotlib

DOCS = Path(__file__).parents[1] / "docs"
ROW = re.compile(
    r"^\| `(?P<name>[a-z0-9-]+)` \| `ort` \|[^|]*\| (?P<bits>[\d.]+) \|[^|]*\| \+(?P<change>[\d.]+) % \|", re.MULTILINE
)
# With other activations than float, they lose more than bits of weights tell.
ROUNDED = ("w4a4", "w6a6", "w8a8")
CALIBRATED = ("-gptq", "-best", "-awq")
# One format under several names, or one that differs in nothing that is drawn.
LEFT_OUT = ("fp6-e2m3",)
# Where the name stands beside its point, in points, and which of its ends is there.
PLACES = {
    "mxfp4": (0, 6, "center"),
    "fp4": (6, 0, "left"),
    "nvfp4": (6, -6, "left"),
    "fp4-best": (5, -10, "left"),
    "int4-gptq": (-6, -9, "right"),
    "int4-awq": (-6, 2, "right"),
    "mxfp6": (6, -9, "left"),
    "fp6": (-6, -9, "right"),
}


def points(text: str) -> dict[str, tuple[float, float]]:
    """Bits a weight and change of perplexity in per cent of each preset; the first row of each is as it is run."""
    found: dict[str, tuple[float, float]] = {}
    for row in ROW.finditer(text):
        name = row["name"]
        if not name.startswith(ROUNDED) and name not in LEFT_OUT:
            found.setdefault(name, (float(row["bits"]), float(row["change"])))
    return found


def draw(found: dict[str, tuple[float, float]], path: Path) -> None:
    """Write the picture; grey enough for pages that are light or dark."""
    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "onnxq", "font.size": 9, "font.family": "sans-serif"}
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
    ink = "#7a7f87"
    for marker, colour, label, calibrated in (
        ("o", "#d2691e", "rounded to nearest, no data", False),
        ("D", "#2f6fd0", "calibrated", True),
    ):
        chosen = {name: at for name, at in found.items() if name.endswith(CALIBRATED) == calibrated}
        axes.plot(*zip(*chosen.values(), strict=True), marker, color=colour, label=label, markersize=5)
        for name, at in chosen.items():
            right, up, side = PLACES.get(name, (6, -3, "left"))
            axes.annotate(name, at, (right, up), textcoords="offset points", color=ink, ha=side)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"+{value:g} %"))
    axes.set_xlabel("bits a weight, with scales and zero points", color=ink)
    axes.set_ylabel("perplexity against the float model", color=ink)
    axes.tick_params(colors=ink)
    axes.minorticks_off()
    axes.grid(color=ink, alpha=0.2)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.legend(frameon=False, labelcolor=ink)
    figure.savefig(path, bbox_inches="tight", transparent=True, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    sys.exit(draw(points((DOCS / "results.md").read_text("utf-8")), DOCS / "images" / "results.svg"))
