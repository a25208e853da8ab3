"""Segments written by hand, and batches to run."""

from collections.abc import Callable
from typing import Any

import pytest

from harness.contract.decoder import Row
from harness.measure.segment import Segment


@pytest.fixture
def dense_segment() -> Callable[..., Segment]:
    """A segment in which each of ``layers`` layers ran once on every token of a batch of one row."""

    def build(layers: int, queries: int, **changes: Any) -> Segment:
        fields: dict[str, Any] = {
            "phase": "prefill",
            "queries": queries,
            "padding": 0,
            "context": queries,
            "forwards": 1,
            "rows": 1,
            "attention": (queries,) * layers,
            "mlp": (queries,) * layers,
            "head": 1,
            "attention_reads": (1.0,) * layers,
            "mlp_reads": (1.0,) * layers,
            "head_reads": 1.0,
        }
        return Segment(**(fields | changes))

    return build


@pytest.fixture
def batch() -> Callable[..., tuple[list[Row], Any]]:
    """What ``Decoder.serving`` takes: a row for each length, and the kind of the batch."""

    def build(kind: Any, *lengths: int) -> tuple[list[Row], Any]:
        return [Row("text", index, (0,), length, length) for index, length in enumerate(lengths)], kind

    return build
