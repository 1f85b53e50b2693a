"""Saves models in children that die at a chosen moment. Run by test_kill.py: one JSON request a line, one answer each.

Importing onnx takes longer than a hundred saves, so one process imports it and every save is a fork of it.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnxq.model.load import Model, load
from onnxq.model.save import stage

# Everything through which a save changes the disk.
CALLS = ("open", "write", "pwrite", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "chmod")


def save(model: Model, output: str, form: str) -> None:
    with stage(output, force=True) as staging:
        if form == "copy":
            staging.commit_copy(model)
            return
        old = model.ir.graph.initializers["w"].const_value
        assert old is not None
        pieces = (old.tobytes()[start : start + 100_000] for start in range(0, old.nbytes, 100_000))
        model.ir.graph.initializers["w"].const_value = staging.append("w", ir.DataType.FLOAT, old.shape, pieces)
        staging.commit(model, external=form == "external")


def die_at(moment: int, number: int, *, after: bool) -> None:
    """Send ourselves signal `number` right before or after the `moment`-th call that may change the disk."""
    count = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == moment and not after:
                os.kill(os.getpid(), number)
            result = call(*args, **kwargs)
            if count == moment and after:
                os.kill(os.getpid(), number)
            return result

        return wrapped

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            # As the command line does, so that everything is cleaned up.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
            try:
                model = load(request["source"])
                if "moment" in request:
                    die_at(request["moment"], request["signal"], after=request["signal"] != signal.SIGKILL)
                save(model, request["output"], request["form"])
            except (KeyboardInterrupt, SystemExit):
                os._exit(3)
            os._exit(0)
        if "seconds" in request:
            time.sleep(request["seconds"])
            os.kill(child, request["signal"])
        _, status = os.waitpid(child, 0)
        sys.stdout.write(json.dumps(os.waitstatus_to_exitcode(status)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
