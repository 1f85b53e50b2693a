"""The record of a conversion, and how it looks in JSON, in a terminal and as a page."""

from onnxq.report.contents import Activation, Entry
from onnxq.report.report import Report

__all__ = ["Activation", "Entry", "Report"]
