"""The families that a reader compares within and across, as data: one table for lists, figures and the board.

A plugin may name a family of its own, in plain text; it comes after the known ones and looks like ``OTHER``.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Family(StrEnum):
    """The known families, in the order in which they are shown."""

    BASELINE = "baseline"
    ROUTING = "routing"
    EARLY_EXIT = "early-exit"
    PRUNING = "pruning"
    QUANTIZATION = "quantization"
    SPARSE = "sparse"
    LOW_RANK = "low-rank"
    CACHE = "cache"
    CONTEXT = "context"
    LOSSLESS = "lossless"


LONGEST: Final = 30
"""Characters of a family's name."""
_FAMILY: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def refusal(method: Any, family: Any) -> str | None:
    """Why a method's family is none, in a sentence with the method's name; None where it is one."""
    text = type(family) in (str, Family)  # another kind of text may be written otherwise than it reads
    if text and len(family) <= LONGEST and _FAMILY.fullmatch(family):
        return None
    return (
        f"{method}: family={family!r:.60} is no family: expected {', '.join(Family)}, or one of your own, as text of "
        f"lower-case words joined by hyphens, {LONGEST} characters at most, such as 'kv-cache'"
    )


@dataclass(frozen=True)
class Look:
    """How a family is drawn: a colour that colour-blind readers tell apart, a shape that grey print keeps.

    Attributes:
        light, dark: the colour on a light and on a dark page, as #rrggbb.
        marker: matplotlib's name of the shape.
        outline: the shape as an SVG path in a box of 16 by 16.
    """

    light: str
    dark: str
    marker: str
    outline: str


LOOKS: Final = {
    Family.BASELINE: Look("#4c4a45", "#c9c6bf", "s", "M1 1H15V15H1Z"),
    Family.ROUTING: Look("#0067a5", "#6cb6ef", "o", "M8 1A7 7 0 1 1 7.99 1Z"),
    Family.EARLY_EXIT: Look("#007a58", "#4fc9a1", "^", "M8 .5 15.5 14.5H.5Z"),
    Family.PRUNING: Look("#bb4a00", "#f39a5c", "D", "M8 0 16 8 8 16 0 8Z"),
    Family.QUANTIZATION: Look("#8b3f93", "#d59adf", "v", "M.5 1.5H15.5L8 15.5Z"),
    Family.SPARSE: Look("#8a6500", "#e6c14f", "P", "M5.5 1h5v4.5H15v5h-4.5V15h-5v-4.5H1v-5h4.5Z"),
    Family.LOW_RANK: Look("#a8325a", "#f08aa8", "p", "M8 .5 15.5 6 12.6 15H3.4L.5 6Z"),
    Family.CACHE: Look("#00708a", "#56c3dc", "<", "M.5 8 14.5 .5V15.5Z"),
    Family.CONTEXT: Look("#5a53b5", "#a9a3f0", ">", "M15.5 8 1.5 .5V15.5Z"),
    Family.LOSSLESS: Look("#4f7000", "#a9cf5a", "h", "M8 .5 14.5 4.2V11.8L8 15.5 1.5 11.8V4.2Z"),
}
OTHER: Final = Look(
    "#625f58", "#a8a59e", "X", "M3.2 1 8 5.8 12.8 1 15 3.2 10.2 8 15 12.8 12.8 15 8 10.2 3.2 15 1 12.8 5.8 8 1 3.2Z"
)


def look(family: str) -> Look:
    """The look of a family by name, known or not."""
    return LOOKS[Family(family)] if family in LOOKS else OTHER


def rank(family: str) -> int:
    """Its place among the families: unknown ones come last."""
    return list(LOOKS).index(Family(family)) if family in LOOKS else len(LOOKS)
