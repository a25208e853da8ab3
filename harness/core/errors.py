"""Errors that a user can act on. The CLI prints their message alone; anything else is a bug and keeps its traceback.

HarnessError
  + UnknownNameError         a name that nothing answers to
  + DiskError                files cannot be written
  + StoreError               a result folder cannot be read
  + UnlikeRunsError          two runs cannot be compared
  + SpecError                a setting that cannot be
  + ModelError               a model cannot be found or loaded
  + UnsupportedModelError    a model that a method or an engine cannot handle
  + MethodError              a method cannot be built, prepared or attached
  + CompileError             the C kernels cannot be compiled or loaded
  + KernelError              a kernel computes something else than it should
  + TraceError               work that cannot be counted
  + CaptureError             a step cannot be captured
  + NoRoomError              memory does not hold a batch
  + LostWorkerError          a worker of a sweep ended in the middle of an item
  + TaskError                a task cannot be loaded
  + SuiteError               a suite's file cannot be read
  + ArchiveError             an archive cannot be packed or unpacked
  + ReportError              a report cannot be made
  + ResultError              a published result cannot be shown
  + SiteError                a leaderboard cannot be built
  + SubmitError              a run cannot be published
"""

from collections.abc import Iterable
from difflib import get_close_matches


class HarnessError(Exception):
    """Something the user asked for cannot be done; the message says what was wrong and what would be right."""


class UnknownNameError(HarnessError):
    """A name that nothing answers to, with the nearest ones that something does."""

    def __init__(self, kind: str, name: str, known: Iterable[str], *, see: str = "") -> None:
        self.suggestions = get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(repr(near) for near in self.suggestions)}?" if self.suggestions else ""
        super().__init__(f"unknown {kind} {name!r}.{hint}{' ' + see if see else ''}")


class DiskError(HarnessError):
    """Results cannot be written where the user wants them."""


class StoreError(HarnessError):
    """A result folder cannot be read as one."""


class UnlikeRunsError(HarnessError):
    """Two runs that answer different questions, so that their difference would mean nothing."""


class SpecError(HarnessError):
    """A setting that cannot be, or settings that cannot be together."""


class ModelError(HarnessError):
    """A model cannot be found or loaded."""


class UnsupportedModelError(HarnessError):
    """A model whose parts could not be found, or that a method cannot handle."""


class MethodError(HarnessError):
    """A method cannot be built, prepared or attached as asked."""


class CompileError(HarnessError):
    """There is no library: no compiler, or it refuses, or what it made cannot be loaded."""


class KernelError(HarnessError):
    """A kernel computes something else than the dense product."""


class TraceError(HarnessError):
    """Work was done that cannot be charged to the rows of the batch."""


class CaptureError(HarnessError):
    """A model's step cannot be captured, here or with this method."""


class NoRoomError(HarnessError):
    """A batch that memory does not hold."""


class LostWorkerError(HarnessError):
    """A worker ended in the middle of an item: killed, out of memory, or its machine went away.

    Attributes:
        log: what it wrote last, as far as it can be read.
    """

    def __init__(self, how: str, log: bytes = b"") -> None:
        self.log = log
        super().__init__(how)


class TaskError(HarnessError):
    """A task cannot be loaded: its data is missing, or its definition is broken."""


class SuiteError(HarnessError):
    """A suite's file cannot be read, or says what a suite cannot say."""


class ArchiveError(HarnessError):
    """A file that is not an archive of this project, or holds what must not be unpacked."""


class ReportError(HarnessError):
    """A report cannot be made of these runs, or here."""


class ResultError(HarnessError):
    """A folder is not a result that can be shown."""


class SiteError(HarnessError):
    """A site cannot be built where it was asked for."""


class SubmitError(HarnessError):
    """A run cannot be published as it is."""


class Enough(Exception):  # noqa: N818 - control flow, not an error
    """Ends a call of foreign code as soon as it has shown what its caller wanted to see."""
