"""Merge the fastest configuration of each product from sweeps into onnxq/runtime/cuda/table.json.

python tools/make_kernel_table.py SWEEP.json ...

Of a configuration timed twice the faster time of the last file counts; of a product timed alone and with another
kernel between, the mean of both. What the table says of other products stays.
"""

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from onnxq.runtime.cuda.configuration import Configuration, Stream, Tile
from onnxq.runtime.cuda.table import TABLE, measured

Product = tuple[str, int, int, int, int]
Times = dict[Configuration, float]


def timed_in(paths: list[str]) -> dict[Product, Times]:
    """Microseconds of the configurations that were right, for each product."""
    found: dict[Product, dict[bool, Times]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for sweep in json.loads(Path(path).read_text()):
            times = found[sweep["fmt"], sweep["group"], sweep["N"], sweep["K"], sweep["M"]][sweep["between"]]
            for row in sorted(sweep["rows"], key=lambda row: row["us"], reverse=True):
                if row["error"] < 1e-3:
                    times[eval(row["configuration"], {"Stream": Stream, "Tile": Tile})] = row["us"]  # noqa: S307 our own text
    return {product: in_all for product, ways in found.items() if (in_all := _means(*ways.values()))}


def _means(*ways: Times) -> Times:
    """The mean times of what was timed in each way."""
    return {each: mean(times[each] for times in ways) for each in ways[0] if all(each in times for times in ways)}


def main() -> None:
    """Read, choose, write."""
    swept = timed_in(sys.argv[1:])
    times = dict(swept)
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
