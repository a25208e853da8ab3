"""The outcomes of a check."""

from dataclasses import dataclass
from enum import StrEnum


class Failed(AssertionError):  # noqa: N818 - read in "raise Failed"
    """The method does not do what it must; the message says where, and what would be right."""


class Skipped(Exception):  # noqa: N818 - not an error
    """The check does not apply to this method; the message says why."""


class Outcome(StrEnum):
    """The outcome of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPECTED = "expected failure"


@dataclass(frozen=True)
class Result:
    """A check with its outcome.

    Attributes:
        message: what is wrong, or why it was skipped or expected to fail; empty for a pass.
        seconds: how long it took.
    """

    name: str
    description: str
    outcome: Outcome
    message: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is to be mended."""
        return self.outcome is not Outcome.FAILED
