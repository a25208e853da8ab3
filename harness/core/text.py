"""Text made fit to show: nothing in a stranger's steers a terminal or breaks a file; a time as people say it."""

import io
import sys


def printable(text: object, *, keep: str = "") -> str:
    """The text with U+FFFD in the place of every character that cannot be printed, but for those to ``keep``."""
    return "".join(char if char.isprintable() or char in keep else "\N{REPLACEMENT CHARACTER}" for char in str(text))


def write_what_can_be() -> None:
    """Let standard output and error replace what their encoding does not have, in place of an error at the first."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def duration(seconds: float) -> str:
    """A time in its largest whole unit: 8 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
