import numpy as np
import pytest

from onnxq.methods.histogram import BINS
from onnxq.passes.record import PassRecord
from onnxq.report import Entry, Report

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
MEGABYTE = 1_000_000


@pytest.fixture
def made_report():
    """A report of so many weights, every tenth of which stayed float; other fields by name."""

    def make(count: int, **changes: object) -> Report:
        rng = np.random.default_rng(0)
        entries = []
        for number in range(count):
            name = f"model.layers.{number // 5}.{PROJECTIONS[number % 5]}.weight"
            plain = Entry(name, name, "MatMul", (f"node_{number}",), (4096, 4096), 32 * MEGABYTE, 32 * MEGABYTE)
            if number % 10 == 9:
                entries.append(Entry(**vars(plain) | {"reason": "no rule matches"}))
                continue
            kind = ("fp6_e2m3", "fp4_e2m1")[number % 3 == 0]
            quantized = {
                "result_bytes": (13 if kind == "fp6_e2m3" else 9) * MEGABYTE,
                "format": kind,
                "spec": f"{kind}, groups of 32, fp16 scales",
                "sqnr_db": (31.0 if kind == "fp6_e2m3" else 20.0) + float(rng.normal()),
                "histogram": tuple(int(each) for each in rng.integers(0, 500, BINS)),
            }
            entries.append(Entry(**vars(plain) | quantized))
        given = {
            "model": "/models/language.onnx",
            "output": "/models/small.onnx",
            "recipe": "mixed",
            "target": "ort",
            "entries": tuple(entries),
            "model_bytes": sum(each.size_bytes for each in entries) + MEGABYTE,
            "output_bytes": sum(each.result_bytes for each in entries) + MEGABYTE,
            "seconds": 12.3,
            "notes": ("calibrated on 128 samples",),
            "warnings": ("rule 2 matches no weight",),
            "version": "0.1.0",
            "passes": (PassRecord("read", 2.0, 400 * MEGABYTE), PassRecord("solve and pack weights", 10.0, None)),
            "recipe_text": "name: mixed\nrules:\n- weight:\n    format: [fp6_e2m3]\n",
            "versions": {"python": "3.11.7", "onnx": "1.23.2"},
        }
        return Report(**given | changes)

    return make
