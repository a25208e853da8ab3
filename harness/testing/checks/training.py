"""Training, and whatever else a method learns: from its study alone, which holds nothing that is scored."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.testing.checks.preparation import prepared_parts
from harness.testing.outcome import Failed
from harness.testing.snapshot import in_words
from harness.testing.subject import Subject, study_of

_CLOSED = ("datasets", "harness.evaluate", "harness.tasks", "lm_eval")
"""Packages through which the documents of a task can be had, those that are scored too."""


def learns_from_its_study_alone(subject: Subject) -> None:
    """Preparing opens no task and no data set: all that it learns from is its study, which holds nothing scored."""
    family = subject.working[0]
    for part in prepared_parts(subject):
        decoder = subject.decoder(family)
        with _watched() as opened:
            part.prepare(decoder, study_of([part], decoder))
        if opened:
            raise Failed(
                f"{family}: preparing runs {in_words(sorted(opened))}, where test documents can be had: take texts and "
                "questions from the study, and say in needs how many"
            )


@contextmanager
def _watched() -> Iterator[set[str]]:
    """The modules of closed packages whose code runs in this thread inside the ``with`` block."""
    opened: set[str] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        module = str(frame.f_globals.get("__name__"))
        if event == "call" and any(module == package or module.startswith(f"{package}.") for package in _CLOSED):
            opened.add(module)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield opened
    finally:
        sys.setprofile(before)
