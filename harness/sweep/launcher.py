"""Where workers run: the one interface behind which a sweep does not know whether they are here or elsewhere."""

from contextlib import AbstractContextManager
from typing import Protocol

from harness.sweep.items import Item, Outcome


class Worker(Protocol):
    """Carries out items, one at a time, on a model that it keeps loaded."""

    def carry_out(self, item: Item) -> Outcome:
        """What came of an item.

        Raises:
            LostWorkerError: the worker is gone; what it had finished is in the folder of results.
        """

    def stop(self) -> None:
        """End it now, in the middle of an item if need be: from any thread, and as often as one likes."""


class Launcher(Protocol):
    """Starts workers."""

    @property
    def workers(self) -> int:
        """How many work on scores at once."""

    @property
    def threads(self) -> int | None:
        """Threads that each of them computes scores with; None for as many as it would by itself."""

    def worker(self, number: int, *, alone: bool = False) -> AbstractContextManager[Worker]:
        """A worker for the length of a ``with`` block.

        Args:
            number: which of them, from 0.
            alone: it measures costs: no other runs meanwhile, and it has its machine to itself.
        """
