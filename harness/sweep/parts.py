"""The shards of one run, as the sweep's threads know them together."""

from dataclasses import dataclass, field
from threading import Lock


@dataclass
class Parts:
    """How many shards of a run are to come.

    Attributes:
        spent_s: seconds that those that have ended took together.
        over: the run has failed, or was made otherwise: what is left of it is not to be done.
    """

    left: int
    spent_s: float = 0.0
    over: bool = False
    _lock: Lock = field(default_factory=Lock, init=False)

    def end(self, seconds: float) -> bool:
        """One has ended; whether it was the last."""
        with self._lock:
            self.left -= 1
            self.spent_s += seconds
            return self.left == 0 and not self.over

    def give_up(self) -> bool:
        """The run is over; whether that is news."""
        with self._lock:
            is_news, self.over = not self.over, True
            return is_news
