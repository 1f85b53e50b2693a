"""Put the fastest configuration of each product from sweeps into onnxq/runtime/cuda/table.json.

python tools/make_kernel_table.py SWEEP.json ...      (later files win where a configuration was timed twice)
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxq.runtime.cuda.configuration import Configuration, Operand, Stream, Tile
from onnxq.runtime.cuda.table import TABLE, fitted

Product = tuple[int, int, int, int]


def main() -> None:
    """Read, choose, write."""
    times: dict[Product, dict[Configuration, float]] = {}
    for path in sys.argv[1:]:
        for sweep in json.loads(Path(path).read_text()):
            bits = 6 if sweep["fmt"].startswith("fp6") else 4
            timed = times.setdefault((bits, sweep["N"], sweep["K"], sweep["M"]), {})
            for row in sweep["rows"]:
                if row["error"] < 1e-3:
                    timed[eval(row["configuration"], {"Stream": Stream, "Tile": Tile})] = row["us"]  # noqa: S307 our own text
    lines: list[dict[str, Any]] = []
    for (bits, N, K, M), timed in sorted(times.items()):
        # What serves more rows serves fewer as fast, where it happens to be the better choice.
        more = times.get((bits, N, K, 8), {}) if M < 8 else {}
        configuration, us = min((*timed.items(), *more.items()), key=lambda item: item[1])
        operand = Operand("fp6_e3m2") if bits == 6 else Operand("fp4_e2m1", group=128)
        if fitted(operand, configuration) != configuration:
            continue
        line = {"bits": bits, "N": N, "K": K, "M": M, "us": round(us, 2), "kernel": configuration.kernel}
        lines.append(line | {"numbers": asdict(configuration)})
    body = ",\n".join(json.dumps(line) for line in lines)
    device = "NVIDIA H200; CUDA-graph replays, weights rotating through more than 200 MB"
    TABLE.write_text(f'{{"measured_on": "{device}",\n"lines": [\n{body}\n]}}\n', encoding="utf-8")
    print(f"{len(lines)} products in {TABLE}")


if __name__ == "__main__":
    main()
