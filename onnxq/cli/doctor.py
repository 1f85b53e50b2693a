"""`onnxq doctor`: what this machine has for running quantized models fast, and what it lacks."""

from dataclasses import asdict

from onnxq.cli.console import show, show_json
from onnxq.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Say which kernels can run here, and why others cannot.

    Nothing of this is needed for right results: what has no kernel runs as a function in the model.
    """
    from rich.text import Text

    from onnxq.runtime.doctor import examine

    findings = examine()
    if as_json:
        show_json([asdict(each) for each in findings])
        return
    width = max(len(each.what) for each in findings)
    for each in findings:
        mark = Text("ok " if each.problem is None else "no ", style="green" if each.problem is None else "yellow")
        show(mark + Text(f" {each.what:{width}}  {each.problem or each.found}"))
