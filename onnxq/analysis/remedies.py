"""What stands out about a weight or an activation, each time with what would help."""

from collections.abc import Iterator

from onnxq.analysis.activations import ActivationRange
from onnxq.analysis.weights import OUTLIER_RATIO, WeightFit

# Gaussian weights have 3, Laplacian 6.
_HEAVY_TAILS = 8.0
# Average channel precision below which one scale for all loses 6 dB and more (arXiv 2011.14578).
_LOW_PRECISION = 0.1
# Decibels that are worth a word: 6 dB are one bit.
_WORTH_DB, _ONE_BIT_DB = 1.0, 6.0
# Input channels that can be called few.
_FEW = 0.05
# A largest magnitude this many times the 99.9th percentile is a spike.
SPIKE_RATIO = 8.0


def of_weight(fit: WeightFit) -> Iterator[str]:
    """What stands out about a weight; the gain of a remedy is measured, not assumed."""
    spread, by = fit.spread, fit.granularity_db
    if spread is None or not by:
        return
    gain = by["int8"]["channel"] - by["int8"]["tensor"]
    if spread.channel_precision < _LOW_PRECISION and gain >= _ONE_BIT_DB:
        yield (
            f"its output channels span very different ranges (average precision {spread.channel_precision:.2f}): one "
            f"scale for all loses {gain:.0f} dB, so keep granularity: channel"
        )
    if spread.kurtosis > _HEAVY_TAILS:
        remedies = []
        if (more := by["fp6_e3m2"]["channel"] - by["fp6_e2m3"]["channel"]) >= _WORTH_DB:
            remedies.append(f"FP6 E3M2 keeps {more:.1f} dB more than E2M3")
        groups = by["int4"].get("groups of 32")
        if groups is not None and (more := groups - by["int4"]["channel"]) >= _WORTH_DB:
            remedies.append(f"groups of 32 keep {more:.1f} dB more than one scale a channel in INT4")
        if remedies:
            yield f"heavy tails (kurtosis {spread.kurtosis:.0f}): {' and '.join(remedies)}"
    if 0 < spread.outlier_inputs <= max(1, _FEW * spread.inputs):
        yield (
            f"{spread.outlier_inputs} of {spread.inputs} input channels over {OUTLIER_RATIO:.0f} times as large as "
            "the median one: smoothing or a rotation takes them out of the scales"
        )


def of_activation(found: ActivationRange) -> Iterator[str]:
    """What stands out about an activation, for those who want to quantize it too."""
    if found.outlier_channels and found.outlier_channels <= max(1, _FEW * found.channels):
        yield (
            f"{found.outlier_channels} of {found.channels} channels over {OUTLIER_RATIO:.0f} times as large as the "
            "median one: smoothing or a rotation spreads them"
        )
    if found.spike > SPIKE_RATIO:
        yield (
            f"spikes of {found.spike:.0f} times the 99.9th percentile: one scale for all would waste most codes; leave "
            "this one float, clip it, or rotate"
        )
