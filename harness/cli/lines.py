"""Progress where standard error is no terminal, such as a log: a line now and then instead of a bar."""

from collections.abc import Callable
from time import monotonic

from harness.core.text import duration

EVERY = 30.0
"""Seconds between two lines."""


class Lines:
    """Says how far something is, and about how long the rest takes at the pace so far."""

    def __init__(self, say: Callable[[str], None], title: str, clock: Callable[[], float] = monotonic) -> None:
        self._say, self._title, self._clock = say, title, clock
        self._started = self._last = clock()
        self._done = self._expected = 0

    def expect(self, requests: int) -> None:
        """Announce requests to come."""
        self._expected += requests

    def advance(self, requests: int) -> None:
        """Count requests as done."""
        self._done += requests
        now = self._clock()
        if now - self._last < EVERY or not self._done or self._done == self._expected:
            return
        self._last, gone = now, now - self._started
        done, left = f"{self._done:,}", ""
        if self._done < self._expected:  # else nobody has said how many there are
            done += f" of {self._expected:,}"
            left = f", about {duration(gone / self._done * (self._expected - self._done))} left"
        self._say(f"{self._title}: {done}, {duration(gone)} so far{left}")
