"""The record of a conversion, and how it looks in JSON and in a terminal."""

from onnxq.report.report import Activation, Entry, Report

__all__ = ["Activation", "Entry", "Report"]
