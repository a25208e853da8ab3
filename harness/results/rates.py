"""Tokens a second from what batches took, and how many times dense's they are."""

from collections.abc import Sequence

import numpy as np

from harness.results.baseline import RatioInfo
from harness.results.stats.conventions import Floats
from harness.results.stats.ratio import paired_ratio
from harness.results.throughput import BatchSize, BatchTimes


def rated(section: BatchSize) -> BatchSize:
    """The section with its rates and ratios, as they follow from its times."""
    run, dense, read = section.run, section.dense, section.prompt_tokens
    has_written = dense is not None and bool(run.written and dense.written)
    return section.model_copy(
        update={
            "reading": rate(read, run.reading_s),
            "writing": rate(run.written, run.writing_s) if run.written else None,
            "reading_ratio": None if dense is None else _ratio(read, run.reading_s, read, dense.reading_s),
            "writing_ratio": _writing_ratio(run, dense) if dense is not None and has_written else None,
        }
    )


def rate(tokens: Sequence[int], seconds: Sequence[Sequence[float]]) -> float:
    """Tokens a second, of tokens [batches] in seconds [batches][rounds]."""
    return float(sum(tokens) / np.median(np.array(seconds), axis=1).sum())


def _writing_ratio(run: BatchTimes, dense: BatchTimes) -> RatioInfo:
    return _ratio(run.written, run.writing_s, dense.written, dense.writing_s)


def _ratio(
    tokens: Sequence[int],
    seconds: Sequence[Sequence[float]],
    dense_tokens: Sequence[int],
    dense_seconds: Sequence[Sequence[float]],
) -> RatioInfo:
    """Tokens a second over dense's, of the same batches in the same rounds: the inverse of a ratio of times."""
    # [batches, rounds]: dense's seconds of a token over the run's
    ratio = paired_ratio(_of_token(tokens, seconds), _of_token(dense_tokens, dense_seconds))
    reason = ratio.reason and ratio.reason.replace("prompts", "batches")
    return RatioInfo(value=ratio.value, low=ratio.low, high=ratio.high, reason=reason)


def _of_token(tokens: Sequence[int], seconds: Sequence[Sequence[float]]) -> Floats:
    return np.array(seconds, dtype=np.float64) / np.array(tokens, dtype=np.float64)[:, None]  # [batches, rounds]
