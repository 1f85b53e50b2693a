"""`Report`: the record of a conversion, in JSON and as a page."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnxq.model.replacing import write_text
from onnxq.report.contents import Contents
from onnxq.report.findings import LayerLosses, Tradeoff
from onnxq.report.html import render


@dataclass(frozen=True)
class Report(Contents):
    """Its contents, and the files that show them; `onnxq.report.terminal` shows them in a terminal."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it; an infinite ratio (nothing was lost) becomes null."""
        plain = asdict(self)
        for entry in plain["entries"]:
            del entry["histogram"]
            if entry["sqnr_db"] == float("inf"):
                entry["sqnr_db"] = None
        return plain

    def write(self, path: str | Path) -> None:
        """Write the report as JSON; the file appears complete or not at all, and replaces one that stands there.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n", "the report")

    def write_html(
        self, path: str | Path, *, losses: LayerLosses | None = None, tradeoff: Tradeoff | None = None
    ) -> None:
        """Write the report as one HTML page that opens from the disk; the file appears complete or not at all.

        Args:
            path: The file; one that stands there is replaced.
            losses: What the model loses by each weight alone, where that was measured.
            tradeoff: Bits and losses of other allocations, where they were searched.

        Raises:
            OutputError: It cannot be written.
        """
        write_text(Path(path), render(self, losses=losses, tradeoff=tradeoff), "the report")
