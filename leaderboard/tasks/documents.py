"""Which documents the board's tasks score, and how a generated answer of SQuAD is scored."""

import re
import string
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datasets import Dataset

SCORED: Final = 500
"""Documents of ``arc_easy_500`` and ``lambada_openai_500``: those of ``--limit 500``."""
GENERATED: Final = 200
"""Documents of ``squad_200``."""
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def first(documents: "Dataset") -> "Dataset":
    """The first documents of a test split; other splits whole, for methods that learn from them."""
    return documents.select(range(min(SCORED, len(documents)))) if documents.split == "test" else documents


def answerable(documents: "Dataset") -> "Dataset":
    """Questions with an answer; of the validation split a fixed number, evenly over its articles."""
    chosen = [index for index, answers in enumerate(documents["answers"]) if answers["text"]]
    if documents.split == "validation":
        count = min(GENERATED, len(chosen))
        chosen = [chosen[place * len(chosen) // count] for place in range(count)]
    return documents.select(chosen)


def squad_scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match and F1 of an answer's words with the best of the reference answers.

    Source: SQuAD, arXiv:1606.05250, section 6.1: without punctuation, articles and case.
    """
    words, references = _words(results[0]), [_words(text) for text in document["answers"]["text"]]
    return {
        "exact_match": float(words in references),
        "f1": max(_f1(words, reference) for reference in references),
    }


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: list[str], reference: list[str]) -> float:
    """Twice the words in common over all words of both."""
    common = (Counter(words) & Counter(reference)).total()
    return 2 * common / max(len(words) + len(reference), 1)
