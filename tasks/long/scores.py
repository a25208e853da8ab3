"""How written answers are scored."""

import re
from collections.abc import Mapping, Sequence
from typing import Any


def answered(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the first word or number that was written is the answer."""
    return {"acc": float(_words(results[0])[:1] == [doc["answers"][0].lower()])}


def recall(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Share of the answers among what was written, of which no more is read than there are answers.

    A model that goes on writing, or copies the text, gains nothing by it.
    """
    answers = [answer.lower() for answer in doc["answers"]]
    words = answers[0].count(" ") + 1
    read = _words(results[0])[: words * len(answers)]
    phrases = [" ".join(read[start : start + words]) for start in range(len(read))]
    return {"recall": sum(answer in phrases for answer in answers) / len(answers)}


def _words(text: str) -> list[str]:
    """The words and numbers of a text; a comma within a number is none, and numbers of a list's items are dropped."""
    return [word for word in re.findall(r"\w+", re.sub(r"(?<=\d),(?=\d{3})", "", text).lower()) if not _is_filler(word)]


def _is_filler(word: str) -> bool:
    return word in ("and", "the", "var", "is") or (word.isdigit() and len(word) < 2)


def bits_per_byte(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a book's continuation in nats, with its bytes as weight."""
    return {"bits_per_byte": (results[0][0], len(doc["continuation"].encode()))}


def number_found(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the first number that was written is the one asked for."""
    number = re.search(r"\d+", results[0].replace(",", ""))
    return {"acc": float(number is not None and number[0] == doc["number"])}


def answer_found(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the answer's word occurs in what was written."""
    return {"acc": float(re.search(rf"\b{re.escape(doc['answer'])}\b", results[0].lower()) is not None)}


def value_found(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the value occurs in what was written."""
    return {"acc": float(doc["value"] in results[0])}
