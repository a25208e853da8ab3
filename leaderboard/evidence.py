"""What single documents say about a run: histograms of their work, and the documents that changed against dense."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.results.documents import answer
from harness.results.samples import Key, SampleLine

_MOST = 200  # changed documents that a page lists
_BINS = 16
_LONGEST = 120  # characters of an answer


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: ``low`` to ``high``, of which the last includes its upper end."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Flip:
    """A document whose score differs from dense's."""

    task: str
    document: int
    dense: float
    method: float
    target: str
    dense_answer: str
    method_answer: str


@dataclass(frozen=True)
class Flips:
    """Paired changes: documents that got worse or better, of those that both runs have.

    Attributes:
        listed: the first of them, worse before better.
    """

    pairs: int
    worse: int
    better: int
    listed: tuple[Flip, ...]


def key(document: SampleLine) -> Key:
    """What identifies a document: its task, its number, and the beginning of its digest, as far as packing keeps it."""
    return document["task"], document["doc_id"], document["doc_hash"][:16]


def histogram(values: Iterable[float]) -> list[Bar]:
    """Bars of equal width over the values' range; one bar where all are equal."""
    ordered = sorted(values)
    if not ordered:
        return []
    low, high = ordered[0], ordered[-1]
    if low == high:
        return [Bar(low, high, len(ordered))]
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for value in ordered:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return [Bar(low + i * width, low + (i + 1) * width, count) for i, count in enumerate(counts)]


def flips(method: Iterable[SampleLine], dense: Iterable[SampleLine], score: str, *, more_is_better: bool) -> Flips:
    """The documents whose ``score`` (``metric,filter``) differs between a method's run and its dense run."""
    by_key = {key(document): document for document in dense}
    pairs, worse, better = 0, list[Flip](), list[Flip]()
    for document in method:
        reference = by_key.get(key(document))
        if reference is None:
            continue
        new, old = _score(document, score), _score(reference, score)
        if new is None or old is None:
            continue
        pairs += 1
        if new != old:
            target, answers = _short(document.get("target")), (answer_text(reference), answer_text(document))
            flip = Flip(*key(document)[:2], old, new, target, *answers)
            (better if (new > old) == more_is_better else worse).append(flip)
    return Flips(pairs, len(worse), len(better), (*worse, *better)[:_MOST])


def _score(document: SampleLine, name: str) -> float | None:
    """A document's number under a score; None where the task keeps none, or one that is not a number."""
    value = document["scores"].get(name)
    return float(value) if isinstance(value, int | float) else None


def answer_text(document: SampleLine) -> str:
    """What the model answered, in a few words; a packed document has these words already."""
    if "answer" in document:
        return _short(document["answer"])
    given = answer(document)
    if isinstance(given, bool):
        return "the target" if given else "not the target"
    if isinstance(given, int):
        return f"choice {given}"
    return _short(given[0] if isinstance(given, list) else given)


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
