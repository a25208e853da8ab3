"""How much a task asks of a model: the tokens of its requests."""

from dataclasses import dataclass


@dataclass
class Workload:
    """The requests of a task.

    Attributes:
        requests: how many.
        read: tokens of texts and prompts that are read.
        written: tokens that may be written, at most.
    """

    requests: int = 0
    read: int = 0
    written: int = 0

    def add(self, *, read: int, written: int = 0) -> None:
        """Count one request."""
        self.requests += 1
        self.read += read
        self.written += written
