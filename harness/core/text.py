"""Strangers' text made fit to show: nothing in it steers a terminal or breaks a file."""

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
