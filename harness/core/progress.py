"""Where work that takes a while reports to."""

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    """Progress over requests; more may be announced as lm-eval gets to them."""

    def expect(self, requests: int) -> None:
        """Announce requests to come."""

    def advance(self, requests: int) -> None:
        """Count requests as done."""


class Progress(Protocol):
    """Where a job reports to."""

    def say(self, message: str) -> None:
        """Tell the user something."""

    def bar(self, title: str) -> AbstractContextManager[Bar]:
        """Show progress for the length of a ``with`` block."""
