"""A `Report` as one HTML page that needs nothing beside itself: no network, no fonts, no libraries."""

import hashlib
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from onnxq.report import figures
from onnxq.report.contents import Contents, Entry, bits_each
from onnxq.report.findings import LayerLosses, Tradeoff
from onnxq.report.text import op_text, seconds_text, shape_text, size_text

# Large pictures of single weights: enough to see a pattern.
_OUTLINES = 6


def render(report: Contents, *, losses: LayerLosses | None = None, tradeoff: Tradeoff | None = None) -> str:
    """The page.

    Args:
        report: Of a conversion, or a plan.
        losses: What the model loses by each weight alone, where that was measured.
        tradeoff: Bits and losses of other allocations, where they were searched.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": size_text,
        "seconds": seconds_text,
        "shape": shape_text,
        "op": op_text,
        "ratio": figures.ratio_text,
        "outline": figures.small_outline,
        "file": lambda path: Path(path).name,
    }
    template, style, script = (
        (resources.files("onnxq.report") / "page" / name).read_text("utf-8")
        for name in ("page.html", "page.css", "page.js")
    )
    skipped: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for row, each in enumerate(report.entries):
        if each.reason is not None:
            skipped[each.reason].append((row, each))
    return environment.from_string(template).render(
        report=report,
        title=_title(report),
        date=datetime.now(UTC).date().isoformat(),
        bits=bits_each(report.quantized),
        worst=min((each for each in report.quantized if each.sqnr_db is not None), key=_sqnr, default=None),
        bars=figures.size_bars(report),
        formats=figures.formats_of(report),
        layers=figures.layers_chart(report),
        ends=figures.first_and_last(len(report.entries)),
        outlines=figures.outlines(report, _OUTLINES),
        losses=losses,
        losses_chart=losses and figures.losses_chart(report, losses),
        tradeoff=tradeoff,
        tradeoff_chart=tradeoff and figures.tradeoff_chart(tradeoff),
        steps={
            step: _grouped((str(each.done or each.reason), each.place) for each in report.changes if each.step == step)
            for step in dict.fromkeys(each.step for each in report.changes)
        },
        activations=_grouped((str(each.spec or each.reason), each.tensor) for each in report.activations),
        skipped=dict(sorted(skipped.items(), key=lambda item: -len(item[1]))),
        longest_pass=max((each.seconds for each in report.passes), default=0.0) or 1.0,
        style=style,
        script=script,
        # Names in a model are untrusted: nothing but this script may run, and nothing may be loaded.
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by what is said about them."""
    found: dict[str, list[str]] = defaultdict(list)
    for text, name in pairs:
        found[text].append(name)
    return dict(found)


def _title(report: Contents) -> str:
    model = Path(report.model).name if report.model else "model in memory"
    return f"{model} in {report.recipe}"


def _sqnr(entry: Entry) -> float:
    return 0.0 if entry.sqnr_db is None else entry.sqnr_db
