"""Words that are common in a list, or frequent in a coded text (RULER's aggregation tasks)."""

from typing import Final

from ..pocket.splits import Draw
from ..pocket.words import COLORS, NOUNS
from .documents import Document, distinct

COMMON: Final = 5
FREQUENT: Final = 3
EXPONENT: Final = 2.0
"""Of Zipf's law: the k-th word occurs in proportion to k ** -2."""
CODED: Final = 40
"""Different words of a coded text, at most."""
CONSONANTS: Final = "bdfgklmnprstvz"


def repeats(tokens: int) -> tuple[int, int]:
    """How often common and rare entries occur: 30 and 3 times as in RULER, and less often in short lists."""
    return (30, 3) if tokens >= 2048 else (10, 1) if tokens >= 1024 else (4, 1)


def common(draw: Draw, size: int, tokens: int) -> Document:
    """A numbered list of about ``size`` entries in which five are common; after a short list with its answer."""
    often, seldom = repeats(tokens)
    pool = draw.shuffled([f"{color} {noun}" for color in COLORS for noun in NOUNS])
    asked, known, others = pool[:COMMON], pool[COMMON : 2 * COMMON], pool[2 * COMMON :]
    rare = min(len(others) - 20, max(1, (size - often * COMMON) // seldom))
    # the rare words first, so that a longer list begins with the same draws
    example = draw.shuffled([*known * 2, *others[:5]])
    entries = draw.shuffled([*asked * often, *others[20 : 20 + rare] * seldom])
    context = f"{_numbered(example)}{_COMMON} {', '.join(known)}.\n\n{_numbered(entries)}"
    return Document(context, _COMMON, tuple(asked))


_COMMON: Final = (
    f"\n\nQuestion: What are the {COMMON} most common entries of the list above?\n"
    f"Answer: The {COMMON} most common entries of the list above are:"
)


def _numbered(entries: list[str]) -> str:
    lines = " ".join(f"{number}. {entry}" for number, entry in enumerate(entries, 1))
    return f"Below is a numbered list of entries. Some of them occur more often than others. Memorize those.\n{lines}"


def frequent(draw: Draw, size: int, tokens: int) -> Document:
    """A text of about ``size`` coded words whose frequencies follow Zipf's law; the first three are asked for."""
    # made-up words of three syllables
    words = distinct(lambda: "".join(draw.pick(CONSONANTS) + draw.pick("aeiou") for _ in range(3)), CODED)
    total = sum(rank**-EXPONENT for rank in range(1, CODED + 1))
    counts = [round(size * rank**-EXPONENT / total) for rank in range(1, CODED + 1)]
    # no tie at the border, also in the shortest text
    counts[:4] = [max(count, least) for count, least in zip(counts[:4], (9, 5, 3, 2), strict=True)]
    said = draw.shuffled([word for word, count in zip(words, counts, strict=True) for _ in range(count)])
    context = f"Below is a coded text. Track how often each coded word occurs.\n{' '.join(said)}"
    question = (
        f"\n\nQuestion: What are the {FREQUENT} most frequent words of the coded text above?\n"
        f"Answer: The {FREQUENT} most frequent words of the coded text above are, the most frequent first:"
    )
    return Document(context, question, tuple(words[:FREQUENT]))
