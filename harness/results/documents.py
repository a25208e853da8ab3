"""What a run's documents say: what each adds to a score, the statistic that makes the score of them, the answers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from harness.results.samples import SampleLine
from harness.results.scores import Score
from harness.results.stats.conventions import Floats, Integers

Statistic = Callable[[Floats], Floats]
"""From values, [..., documents, parts], to scores, [...]."""
_INFLATION: Final = 1.05
"""How much larger than that of independent documents a variance may become before copies count as one document."""


def mean(values: Floats) -> Floats:
    """Scores that are a mean over documents."""
    means: Floats = values[..., 0].mean(axis=-1)
    return means


def perplexity(values: Floats) -> Floats:
    """Scores of log-likelihoods, one a document."""
    return np.exp(-mean(values))


def weighted_perplexity(values: Floats) -> Floats:
    """Scores of (log-likelihood, words or bytes) of each document."""
    return np.exp(-_per_unit(values))


def bits_per_unit(values: Floats) -> Floats:
    """Scores of (log-likelihood, bytes) of each document, in bits."""
    return -_per_unit(values) / math.log(2)


def _per_unit(values: Floats) -> Floats:
    total: Floats = values[..., 0].sum(axis=-1) / values[..., 1].sum(axis=-1)
    return total


STATISTICS: Final[dict[str, Statistic]] = {
    "mean": mean,
    "perplexity": perplexity,
    "weighted_perplexity": weighted_perplexity,
    "bits_per_byte": bits_per_unit,
}
"""By lm-eval's name of the aggregation."""


def parts_of(statistic: Statistic) -> int:
    """How many numbers of a document the statistic needs."""
    return 2 if statistic in (weighted_perplexity, bits_per_unit) else 1


def scored(task: str, score: str, documents: Sequence[SampleLine]) -> list[Any]:
    """What each document that has a score (``metric,filter``) adds to it; a group's score is over all of its tasks."""
    return [document["scores"][score] for document in _having(task, score, documents)]


def _having(task: str, score: str, documents: Sequence[SampleLine]) -> list[SampleLine]:
    having = [document for document in documents if score in document["scores"]]  # a level's score: of its documents
    within = [document for document in having if document["task"] == task]
    return within or having


def numeric(given: Sequence[Any]) -> Floats | None:
    """Documents' values as [documents, parts]; None where there are none, or one of them is no finite number."""
    if given and {type(value) for value in given} <= {int, float, bool}:  # most are, and there are many
        plain = np.array(given, dtype=float)[:, None]
        return plain if np.isfinite(plain).all() else None
    rows = [value if isinstance(value, list | tuple) else [value] for value in given]
    if any(isinstance(part, str | bytes) for row in rows for part in row):  # numpy would read digits in a text
        return None
    try:
        values = np.array(rows, dtype=float)
    except (TypeError, ValueError):
        return None
    return values if values.ndim == 2 and np.isfinite(values).all() else None


def values_of(score: Score, documents: Sequence[SampleLine]) -> Floats | None:
    """What each document adds to a record's score, [documents, parts]; None where that is no number."""
    return numeric(scored(score.task, f"{score.metric},{score.filter}", documents))


def clusters_of(score: Score, documents: Sequence[SampleLine]) -> Integers | None:
    """Which of a score's documents are the same, by the digest of their contents, [documents]; None where all differ.

    A group may ask about one document in several ways. Copies count as one cluster where they could make the variance
    of a mean more than 5 % larger than that of independent documents; a few repeated rows of a data set do not.
    """
    digests = [line["doc_hash"] for line in _having(score.task, f"{score.metric},{score.filter}", documents)]
    if len(set(digests)) == len(digests):
        return None
    clusters, sizes = np.unique(digests, return_inverse=True, return_counts=True)[1:]
    return clusters if (sizes**2).sum() > _INFLATION * len(digests) else None


def statistic_of(score: Score, values: Floats) -> Statistic | None:
    """The statistic that makes the score of its documents' values, [documents, parts]; None if none of ours does."""
    for statistic in STATISTICS.values():
        if values.shape[1] < parts_of(statistic):
            continue
        with np.errstate(all="ignore"):
            computed = float(statistic(values))
        if score.value is not None and math.isclose(computed, score.value, rel_tol=1e-6, abs_tol=1e-9):
            return statistic
    return None


def answer(document: SampleLine) -> Any:
    """What a document was answered: the text, the choice of highest likelihood, or whether the target is likeliest.

    None where there is no answer, as in scoring a text, or where a likelihood is no number.
    """
    given = next(iter((document.get("filtered") or {}).values()), None)
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    if isinstance(given, list) and given and all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        if any(pair[0] is None for pair in given):  # a likelihood that is no number
            return None
        return max(range(len(given)), key=lambda index: given[index][0])  # pairs of (log-likelihood, is greedy)
    if isinstance(given, list) and len(given) == 2 and isinstance(given[1], bool):
        return None if given[0] is None else given[1]
    texts = given if isinstance(given, list) else [given]
    return given if texts and all(isinstance(text, str) for text in texts) else None


def given(document: SampleLine) -> Any:
    """What two runs' answers to a document are compared by: of texts all that was written, whatever filters keep of it.

    None where there is no answer, as in scoring a text.
    """
    responses = document.get("responses") or []
    if responses and all(isinstance(text, str) for response in responses for text in response):
        return responses
    shown = answer(document)
    return shown if shown is None or isinstance(shown, int) else document.get("filtered")
