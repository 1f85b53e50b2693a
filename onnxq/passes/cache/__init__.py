"""Quantization of the cache of keys and values."""

from onnxq.passes.cache.insert import quantize_cache
from onnxq.passes.cache.plan import CachePlan, cache_statistics, plan_cache

__all__ = ["CachePlan", "cache_statistics", "plan_cache", "quantize_cache"]
