"""What single documents say about a run: histograms of their work, and the documents that changed against dense."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Key = tuple[str, int, str]
_MOST = 200  # changed documents that a page lists
_BINS = 16


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

    @property
    def rate(self) -> float:
        """Share of the documents that changed."""
        return (self.worse + self.better) / self.pairs if self.pairs else 0.0


def key(sample: Mapping[str, Any]) -> Key:
    """What tells a document: its task, its number, and the beginning of its digest, as far as packing keeps it."""
    return str(sample["task"]), int(sample["doc_id"]), str(sample["doc_hash"])[:16]


def histogram(values: Iterable[float]) -> list[Bar]:
    """Bars of equal width over the values' range; whole numbers of a small range get a bar each."""
    found = sorted(values)
    if not found:
        return []
    low, high = found[0], found[-1]
    if low == high:
        return [Bar(low, high, len(found))]
    width = (high - low) / _BINS
    counts = [0] * _BINS
    for each in found:
        counts[min(int((each - low) / width), _BINS - 1)] += 1
    return [Bar(low + i * width, low + (i + 1) * width, count) for i, count in enumerate(counts)]


def flips(
    ours: Iterable[Mapping[str, Any]], theirs: Iterable[Mapping[str, Any]], score: str, *, more_is_better: bool
) -> Flips:
    """The documents whose ``score`` (``metric,filter``) differs between a run and its dense run."""
    dense = {key(sample): sample for sample in theirs}
    pairs, worse, better = 0, list[Flip](), list[Flip]()
    for sample in ours:
        other = dense.get(key(sample))
        if other is None:
            continue
        new, old = _score(sample, score), _score(other, score)
        if new is None or old is None:
            continue
        pairs += 1
        if new != old:
            change = Flip(*key(sample)[:2], old, new, _text(sample.get("target")), answer(other), answer(sample))
            (better if (new > old) == more_is_better else worse).append(change)
    return Flips(pairs, len(worse), len(better), (*worse, *better)[:_MOST])


def _score(sample: Mapping[str, Any], name: str) -> float | None:
    """A document's number under a score; None where the task keeps none, or one that is not a number."""
    found = sample["scores"].get(name)
    return float(found) if isinstance(found, int | float) else None


def answer(sample: Mapping[str, Any]) -> str:
    """What the model answered, in a few words: the generated text, or the number of the likeliest choice."""
    if "answer" in sample:
        return _text(sample["answer"])
    filtered = next(iter(sample.get("filtered", {}).values()), None)
    if not isinstance(filtered, list) or not filtered:
        return ""
    if all(isinstance(each, list) and each and isinstance(each[0], int | float) for each in filtered):
        likelihoods = [each[0] for each in filtered]
        return f"choice {likelihoods.index(max(likelihoods))}" if len(filtered) > 1 else f"{likelihoods[0]:.3f}"
    return _text(filtered[0])


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 120 else text[:119] + "…"
