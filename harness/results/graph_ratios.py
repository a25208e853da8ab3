"""What follows from the times of captured steps: typical times, and ratios to dense's in the same rounds."""

import numpy as np

from harness.results.baseline import RatioInfo
from harness.results.costs import typical
from harness.results.graph import NAMES, Graph, GraphTimes
from harness.results.stats.ratio import paired_ratio


def compared(section: Graph) -> Graph:
    """The section with its typical times and ratios, as they follow from its times."""
    run, dense, repeat = section.run, section.dense, section.dense_repeat
    return section.model_copy(
        update={
            "typical": {name: typical(times) for name in NAMES if (times := getattr(run, name))},
            "ratios": {} if dense is None else _ratios(dense, run),
            "noise": {} if dense is None or repeat is None else _ratios(dense, repeat),
        }
    )


def _ratios(dense: GraphTimes, times: GraphTimes) -> dict[str, RatioInfo]:
    ratios = {}
    for name in NAMES:
        before, after = np.array(getattr(dense, name)), np.array(getattr(times, name))  # each [requests, rounds]
        if before.size and before.shape == after.shape:
            ratio = paired_ratio(before, after)
            ratios[name] = RatioInfo(value=ratio.value, low=ratio.low, high=ratio.high, reason=ratio.reason)
    return ratios
