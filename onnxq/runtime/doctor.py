"""What on this machine makes quantized models fast, and what is missing for it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxq.errors import OnnxqError
from onnxq.runtime.cuda import device
from onnxq.runtime.native import native_library
from onnxq.runtime.session import CUDA, available_providers


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        what: Its name.
        found: What there is, in one line; empty where there is nothing.
        problem: Why it cannot be used, and what to do; None where all is well.
    """

    what: str
    found: str = ""
    problem: str | None = None


def examine() -> list[Finding]:
    """Look for everything; nothing that is missing raises. What lacks the same as something before it says so."""
    findings: list[Finding] = []
    for each in _findings():
        cause = next((other for other in findings if each.problem and other.problem == each.problem), None)
        findings.append(each if cause is None else replace(each, problem=f"needs {cause.what}"))
    return findings


def _findings() -> list[Finding]:
    return [
        _look("onnxruntime", _onnxruntime),
        _native_library(),
        _cpu_kernels(),
        _look("CuPy", lambda: str(device.cupy().__version__)),
        _look("GPU", lambda: "; ".join(device.devices()), "CUDA finds no GPU here"),
        _gpu_kernels(),
    ]


def _look(what: str, find: Callable[[], str], nothing: str | None = None) -> Finding:
    try:
        found = find()
    except OnnxqError as error:
        return Finding(what, problem=str(error))
    return Finding(what, found, None if found else nothing)


def _onnxruntime() -> str:
    version, providers = available_providers()
    return f"{version}, with {', '.join(providers)}"


def _native_library() -> Finding:
    library = native_library()
    return Finding("native library", "" if library.problem else str(library.path), library.problem)


def _cpu_kernels() -> Finding:
    what, library = "CPU kernels", native_library()
    if library.problem:
        return Finding(what, problem="the native library is missing: models run their functions, as float")
    forced, sets = os.environ.get("ONNXQ_CPU_ISA"), library.instruction_sets
    if forced and forced not in sets:
        return Finding(what, problem=f"ONNXQ_CPU_ISA is '{forced}'; this CPU can run: {', '.join(sets)}")
    chosen = forced or sets[0]
    others = ", ".join(each for each in sets if each != chosen)
    return Finding(what, f"{chosen}{f' (or {others})' if others else ''}, {len(library.operators)} operators")


def _gpu_kernels() -> Finding:
    what = "GPU kernels"
    if library := native_library().problem:
        return Finding(what, problem=f"the native library is missing: {library}")
    if reason := device.problem():
        return Finding(what, problem=reason)
    try:
        _, providers = available_providers()
    except OnnxqError as error:
        return Finding(what, problem=str(error))
    if CUDA not in providers:
        return Finding(what, problem=f"this onnxruntime has no {CUDA}: pip install 'onnxq[gpu]'")
    return Finding(what, f"{len(native_library().cuda_operators)} operators, compiled when a session is made")
