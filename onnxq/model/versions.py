"""Versions of the packages that take part in a conversion."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("onnxq", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy")


def package_versions() -> dict[str, str]:
    """By the name of each package that is installed."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
