"""Errors a user can act on. The CLI prints their message alone; anything else is a bug and keeps its traceback."""

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


class MethodError(HarnessError):
    """A method cannot be built, prepared or attached as asked."""


class UnsupportedModelError(HarnessError):
    """A model whose parts could not be found, or that a method cannot handle."""
