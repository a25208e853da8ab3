"""Documents as long as wanted: the largest whose prompt, with room for its answer, fits into a number of tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from ..pocket.splits import Draw

BEGIN_TOKENS: Final = 2
"""Room for the tokens that a tokenizer puts around a text."""
FILLED: Final = 0.96
"""Part of the room that a document fills at the least, where the size of its pieces allows it."""
TRIES: Final = 12


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        context: the long text, which says nothing of the question.
        question: what follows it in the prompt, up to the answer.
        answers: what is asked for, each a word or a number.
        choices: the answers to choose from; empty where the answer is written.
    """

    context: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return self.context + self.question

    @property
    def row(self) -> dict[str, Any]:
        """The document as lm-eval has it; ``answer`` is the place of the right choice, or the answers in a row."""
        answer = self.choices.index(self.answers[0]) if self.choices else ", ".join(self.answers)
        columns = {"context": self.context, "question": self.question, "answer": answer, "answers": list(self.answers)}
        return columns | ({"choices": list(self.choices)} if self.choices else {})


@dataclass(frozen=True)
class Kind:
    """A kind of documents.

    Attributes:
        name: part of its tasks' names.
        make: a document from random draws, its size in pieces (sentences, entries, pairs, symbols), and its length in
            tokens, by which a kind may choose how much it hides. The same draws at a larger size give a longer text.
        answer_tokens: room that an answer takes, at most.
        least: pieces of the shortest document.
    """

    name: str
    make: Callable[[Draw, int, int], Document]
    answer_tokens: int
    least: int = 1


Count = Callable[[str], int]
"""Tokens of a text."""


def distinct(make: Callable[[], str], count: int) -> list[str]:
    """So many different texts of those that ``make`` makes, in the order in which they came."""
    made: dict[str, None] = {}
    while len(made) < count:
        made[make()] = None
    return list(made)


def documents(kind: Kind, tokens: int, count: Count, split: str) -> Iterator[Document]:
    """An endless stream of documents of one split; no draw is that of another split.

    Args:
        tokens: of a prompt and its answer, at most.

    Raises:
        ValueError: the shortest document has no room in so many tokens.
    """
    room, size, index = tokens - kind.answer_tokens - BEGIN_TOKENS, max(kind.least, tokens // 16), 0
    while True:
        document, size = _largest(kind, (split, index), tokens, room, size, count)
        yield document
        index += 1


def _largest(
    kind: Kind, seed: tuple[object, ...], tokens: int, room: int, size: int, count: Count
) -> tuple[Document, int]:
    """The document of a seed that fills the room, and its size; ``size`` is where the search begins."""
    fitting: tuple[Document, int] | None = None
    too_large: int | None = None
    for _ in range(TRIES):
        document = kind.make(Draw("long", 1, kind.name, tokens, *seed), size, tokens)
        used = count(document.prompt)
        change = (room * (1 + FILLED) / 2 - used) / used * size
        if used <= room:
            fitting = document, size
            if used >= room * FILLED or size + 1 == too_large:
                break
            size += max(1, int(change))
            size = size if too_large is None else min(size, too_large - 1)
        elif size <= kind.least:
            break
        else:
            too_large = size
            size = max(kind.least if fitting is None else fitting[1] + 1, size - max(1, ceil(-change)))
            if size == too_large:
                break
    if fitting is None:
        raise ValueError(f"the shortest {kind.name} document has {used} tokens here, and room is for {room}")
    return fitting
