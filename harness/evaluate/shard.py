"""A part of an evaluation: some of the batches that the whole evaluation forms, so that every rounding stays."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th batch of an evaluation, from the one at ``index`` on; batches are formed longest first."""

    index: int
    count: int

    def has(self, batch: int) -> bool:
        """Whether the batch of this number, from 0, is a part of it."""
        return batch % self.count == self.index

    @property
    def journal(self) -> str:
        """The name of the file that keeps its answers."""
        return f"journal.shard{self.index + 1}of{self.count}.jsonl"
