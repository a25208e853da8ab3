"""Which documents the board's tasks score, and how a written word is scored."""

import string
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datasets import Dataset

SCORED: Final = 500
"""Documents of ``arc_easy_500`` and ``lambada_openai_500``: those of ``--limit 500``."""
WRITTEN: Final = 200
"""Documents of ``lambada_written_200``: those after them."""


def first(documents: "Dataset") -> "Dataset":
    """The first documents of a test split; other splits whole, for methods that learn from them."""
    return documents.select(range(min(SCORED, len(documents)))) if documents.split == "test" else documents


def following(documents: "Dataset") -> "Dataset":
    """The documents of a test split that follow those of ``first``."""
    return documents.select(range(SCORED, SCORED + WRITTEN))


def word_score(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the first word that was written is the text's last one, whatever punctuation follows it."""
    (written, *_), last = [*results[0].split(), ""], document["text"].split(" ")[-1]
    return {"acc": float(written.strip(string.punctuation) == last.strip(string.punctuation))}
