"""Which layers ran for which documents: the paths that a trace shows, and what a batch had to read for them.

Read off what ran, like everything in a trace: a method that says it skips and does not shows here as the full path.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from harness.measure.segment import READING, WRITING, Phase, Segment

MOST: Final = 10
"""Paths that a record lists."""


def path_of(segments: Iterable[Segment]) -> tuple[int, ...] | None:
    """How often each layer ran while a row's prompt was read or its text was scored.

    None where some layer ran its attention and its MLP differently, or on a part of the tokens: no path of layers.
    """
    for segment in segments:
        if segment.phase in READING:
            passes = [divmod(tokens, segment.queries) for tokens in (*segment.attention, *segment.mlp)]
            counts = tuple(count for count, rest in passes if not rest)
            half = len(segment.attention)
            return counts[:half] if len(counts) == 2 * half and counts[:half] == counts[half:] else None
    return None


def routes(rows: Sequence[Sequence[Segment]]) -> dict[str, Any] | None:
    """The paths of a run's rows, as fields of the record's ``Routes``; None where rows have no paths of layers."""
    # continuations of a context that was read first took its path
    paths = [path_of(segments) for segments in rows if any(segment.phase != "decode" for segment in segments)]
    known = [path for path in paths if path is not None]
    if not known or len(known) < len(paths):
        return None
    counted, total = Counter(known), len(known)
    common = {"".join(map(str, path)): number / total for path, number in counted.most_common(MOST)}
    segments = [segment for row in rows for segment in row]
    return {
        "distinct": len(counted),
        "identity": counted[(1,) * len(known[0])] / total,
        "entropy": -sum(number / total * math.log2(number / total) for number in counted.values()),
        "common": common,
        "union_prefill": _union(segments, *READING),
        "union_decode": _union(segments, *WRITING),
    }


def _union(segments: Iterable[Segment], *phases: Phase) -> float | None:
    """Passes over layers that batches made, in parts of those that dense batches make.

    A layer's weights are read as soon as one row of the batch runs it: this, not the rows' mean, is what a step that
    waits for memory saves.
    """
    read = forwards = 0.0
    layers = 1
    for segment in segments:
        if segment.phase in phases:
            layers = len(segment.attention)
            read += segment.forwards * (sum(segment.attention_reads) + sum(segment.mlp_reads)) / 2
            forwards += segment.forwards / segment.rows
    return read / (forwards * layers) if forwards else None
