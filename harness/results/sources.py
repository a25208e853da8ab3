"""Which source computes which section of a record, so that a section is made anew when its source has changed."""

from collections.abc import Callable
from functools import cache
from typing import Final, Literal

from harness.core.source import closure_digest
from harness.results.record import RunRecord

ComputedSection = Literal["scores", "time.ideal", "time.roofline", "baseline"]
MODULES: Final[dict[ComputedSection, str]] = {
    "scores": "harness.results.intervals",
    "time.ideal": "harness.run.modelled",
    "time.roofline": "harness.run.modelled",
    "baseline": "harness.results.compare",
}
"""The modules that compute sections from stored observations: intervals, modelled times, differences and ratios."""


def digest(section: ComputedSection) -> str:
    """The digest of the source that computes the section."""
    return _digest(closure_digest, MODULES[section])


@cache
def _digest(closure: Callable[[str], str], module: str) -> str:
    """Sources do not change under a process that runs them, and many records ask."""
    return closure(module)


def stale(record: RunRecord) -> set[ComputedSection]:
    """The sections that the record has and that another source computed, or one that is not known."""
    time = record.time
    present: dict[ComputedSection, bool] = {
        "scores": True,
        "time.ideal": time is not None and time.ideal is not None,
        "time.roofline": time is not None and bool(time.roofline),
        "baseline": record.baseline is not None,
    }
    return {
        section
        for section, is_present in present.items()
        if is_present and record.sources.get(section) != digest(section)
    }
