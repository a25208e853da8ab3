"""Scores of a record and their differences to dense."""

from pydantic import Field

from harness.results.section import Section


class PairedScore(Section):
    """A score against dense on the same documents.

    Attributes:
        difference: method - dense, within ``low`` and ``high`` at 95 %, which leave 0 out exactly where ``p`` < .05.
        p: two-sided, by the ``test``; ``p_adjusted`` for the number of tasks compared together (Holm).
        gained, lost: documents that scored higher, and lower, than under dense.
        detectable: smallest difference that the ``test`` finds in four of five tries with so many documents.
        noninferior: whether a loss of ``margin`` can be excluded; null without an interval.
        reason: why there is no interval, or nothing detectable.
    """

    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    test: str | None = None
    n: int
    gained: int | None = None
    lost: int | None = None
    detectable: float | None = None
    margin: float | None = None
    noninferior: bool | None = None
    reason: str | None = None


class Score(Section):
    """One metric of one task (or group) under one filter, exactly as lm-eval reports it.

    Attributes:
        stderr: standard error; null where lm-eval gives none.
        low, high: 95 % interval of the score, Wilson's for a share of right answers; null where documents are too few.
        n: scored documents.
        vs_baseline: against dense on the same documents; null without a baseline.
    """

    task: str
    metric: str
    filter: str
    value: float | None
    stderr: float | None
    low: float | None = None
    high: float | None = None
    n: int
    higher_is_better: bool | None
    vs_baseline: PairedScore | None = Field(default=None)
