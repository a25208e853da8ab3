"""The audit of a run's counts: a few of its own requests run again, counted by PyTorch and by the trace."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.contract.decoder import Decoder
from harness.measure.audit import Audit, audit
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, serve
from harness.measure.trace import Tracer

REPLAYED: Final = 2
"""Batches of a run whose first rows are served again."""
NEW_TOKENS: Final = 32
"""New tokens of a generation that are written again, with the run's arguments and limits, at the most."""


@dataclass(frozen=True)
class Replay:
    """The audit of a run; ``audit`` is None where it could not be made, for the ``reason`` given."""

    audit: Audit | None
    reason: str | None = None


def replay(model: Decoder, tracer: Tracer, requests: Sequence[CostRequest]) -> Replay:
    """Serve requests again under PyTorch's operator counter. A check, so whatever goes wrong in it ends no run."""
    if not requests:
        return Replay(None, "nothing was asked of the model")

    def run() -> list[Segment]:
        segments: list[Segment] = []
        for request in requests:
            serve(model, request)
            segments += (segment for row in tracer.collect() for segment in row)
        return segments

    try:
        return Replay(audit(model, run))
    except Exception as error:
        return Replay(None, f"the audit failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
