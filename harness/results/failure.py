"""What a run that failed leaves in its folder: why, and its log. It is no record, and goes when the run is finished."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.core.files import write_atomic

FAILURE, LOG = "failure.json", "failure.log"
_LONGEST: Final = 65_536
"""Bytes of a log that are kept, from its end."""


class Failure(BaseModel):
    """Why a run has no record.

    Attributes:
        reason: in a sentence.
        instead: the id of the run that was made in its place, with a smaller batch; None where there is none.
        method, model, task: what it was to be.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    reason: str
    instead: str | None = None
    method: str = ""
    model: str = ""
    task: str = ""

    def write(self, folder: Path, log: bytes) -> None:
        """Leave it in a run's folder, with the end of the log.

        Raises:
            DiskError: it cannot be written.
        """
        write_atomic(folder / LOG, log[-_LONGEST:])
        write_atomic(folder / FAILURE, self.model_dump_json(indent=2) + "\n")


def failure_in(folder: Path) -> Failure | None:
    """Why the run of a folder failed; None where it did not, or left nothing that can be read."""
    try:
        return Failure.model_validate_json((folder / FAILURE).read_bytes())
    except (OSError, ValidationError):
        return None


def clear_failure(folder: Path) -> None:
    """Remove what a failed attempt at a run has left."""
    for name in (FAILURE, LOG):
        (folder / name).unlink(missing_ok=True)
