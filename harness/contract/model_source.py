"""Where a model's files are, and the fingerprint that says which model it is."""

from dataclasses import dataclass
from pathlib import Path

from harness.core.rounding import Rounding


@dataclass(frozen=True)
class ModelSource:
    """A model's place and identity.

    Attributes:
        pretrained: as the user gave it.
        folder: its files on this machine.
        fingerprint: the hub's commit, or a digest of every file that can change an output.
        title: what it is called, where ``pretrained`` does not say it.
        rounding: how its weights were rounded in the file that they were read from; None where that has floats.
        disk: bytes of its files of weights, where other ones are loaded in their place; None where they are loaded.
    """

    pretrained: str
    revision: str | None
    folder: Path
    fingerprint: str
    title: str = ""
    rounding: Rounding | None = None
    disk: int | None = None

    @property
    def name(self) -> str:
        """A short name for tables and folders."""
        return self.title or self.pretrained.rstrip("/").rpartition("/")[2]

    @property
    def loadable(self) -> str:
        """What transformers loads it by."""
        return self.pretrained if self.fingerprint.startswith("hub:") else str(self.folder)
