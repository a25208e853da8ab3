"""What the board filters by: the text of a run in each facet, and the choices in the order that readers expect."""

from collections.abc import Callable, Iterable
from typing import Final

from harness.contract.families import LOOKS
from harness.reports.columns import at
from harness.reports.rows import Row

UNKNOWN: Final = "unknown"
_SIZES: Final = (
    (1e8, "below 100 M"),
    (5e8, "100 M to 500 M"),
    (1e9, "500 M to 1 B"),
    (3e9, "1 B to 3 B"),
    (9e9, "3 B to 9 B"),
    (20e9, "9 B to 20 B"),
    (80e9, "20 B to 80 B"),
    (float("inf"), "80 B and more"),
)
"""Classes of models by parameters: the number that a class is below, and its name."""


def size(row: Row) -> str:
    """The class of a model's number of parameters."""
    count = row.record["model"]["parameters"]
    return next(name for bound, name in _SIZES if count < bound) if count else UNKNOWN


def version(row: Row) -> str:
    """The version of the harness that made the run."""
    return str(row.record["environment"]["versions"].get("efficiency-harness", UNKNOWN))


FACETS: Final[dict[str, tuple[str, Callable[[Row], str]]]] = {
    "family": ("Family", lambda row: row.record["method"]["family"]),
    "method": ("Method", lambda row: row.record["method"]["name"]),
    "model": ("Model", lambda row: row.record["model"]["name"]),
    "size": ("Model size", size),
    "license": ("License", lambda row: at(row.record, "model/license") or UNKNOWN),
    "task": ("Task", lambda row: row.record["evaluation"]["task"]),
    "scoring": ("Scoring", lambda row: row.record["evaluation"]["score_mode"]),
    "hardware": ("Hardware", lambda row: row.hardware),
    "output": ("Output", lambda row: "exact" if row.record["method"]["exact"] else "lossy"),
    "saving": ("Saving", lambda row: row.saving),
    "version": ("Version", version),
}
"""By the name in addresses and files: the heading, and a run's text."""

_ORDER: Final = {"family": [family.value for family in LOOKS], "size": [name for _, name in _SIZES]}


def choices(name: str, texts: Iterable[str]) -> list[str]:
    """The texts of a facet, each once: in their own order where they have one, else by letters; the unknown last."""
    known = _ORDER.get(name, [])
    places = {text: place for place, text in enumerate(known)}
    return sorted(set(texts), key=lambda text: (text == UNKNOWN, places.get(text, len(known)), text.lower(), text))
