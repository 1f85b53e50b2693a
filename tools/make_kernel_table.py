"""Merge the fastest configuration of each product from sweeps into onnxq/runtime/cuda/table.json.

python tools/make_kernel_table.py SWEEP.json ...

Of a configuration timed twice the faster time counts, and of files the last. What the table says of other products
stays.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxq.runtime.cuda.configuration import Configuration, Stream, Tile
from onnxq.runtime.cuda.table import TABLE, measured

Product = tuple[str, int, int, int, int]


def main() -> None:
    """Read, choose, write."""
    times: dict[Product, dict[Configuration, float]] = {}
    for path in sys.argv[1:]:
        for sweep in json.loads(Path(path).read_text()):
            timed = times.setdefault((sweep["fmt"], sweep["group"], sweep["N"], sweep["K"], sweep["M"]), {})
            for row in sorted(sweep["rows"], key=lambda row: row["us"], reverse=True):
                if row["error"] < 1e-3:
                    timed[eval(row["configuration"], {"Stream": Stream, "Tile": Tile})] = row["us"]  # noqa: S307 our own text
    times = {product: timed for product, timed in times.items() if timed}
    swept = dict(times)
    for known in measured() if TABLE.exists() else ():
        times.setdefault((known.fmt, known.group, known.N, known.K, known.M), {known.configuration: known.us})
    lines: list[dict[str, Any]] = []
    for (fmt, group, N, K, M), timed in sorted(times.items()):
        # What serves more rows serves fewer as fast, where it happens to be the better choice of those timed alike.
        more = swept.get((fmt, group, N, K, 8), {}) if M < 8 and (fmt, group, N, K, M) in swept else {}
        configuration, us = min((*timed.items(), *more.items()), key=lambda item: item[1])
        line = {"fmt": fmt, "group": group, "N": N, "K": K, "M": M, "us": round(us, 2), "kernel": configuration.kernel}
        lines.append(line | {"numbers": asdict(configuration)})
    body = ",\n".join(json.dumps(line) for line in lines)
    device = "NVIDIA H200; CUDA-graph replays, weights rotating through more than 200 MB"
    TABLE.write_text(f'{{"measured_on": "{device}",\n"lines": [\n{body}\n]}}\n', encoding="utf-8")
    print(f"{len(lines)} products in {TABLE}")


if __name__ == "__main__":
    main()
