"""Durations in words."""


def in_words(seconds: float) -> str:
    """About how long: "1 s", "89 s", "2 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
