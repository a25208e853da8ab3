"""Strangers' text made fit to show: nothing in it steers a terminal or breaks a file."""


def printable(text: object, *, keep: str = "") -> str:
    """The text with U+FFFD in the place of every character that cannot be printed, but for those to ``keep``."""
    return "".join(char if char.isprintable() or char in keep else "\N{REPLACEMENT CHARACTER}" for char in str(text))
