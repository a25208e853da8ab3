"""Documents by the million, always the same ones, and never one in two splits.

The content of a document decides its split: a digest of its ``key`` puts it into training, validation or
test, so no two splits can share a document, however many are drawn. Drawing uses only what Python promises
to keep stable across versions: ``random.Random(int).random()``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from itertools import count, islice
from random import Random
from typing import Any, TypeVar

T = TypeVar("T")


class Split(StrEnum):
    """The three parts of a task's documents, named as in lm-eval."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"

    @classmethod
    def of(cls, key: str) -> "Split":
        """The only split that may hold a document with this key: 13/16 train, 1/16 validation, 2/16 test."""
        bucket = sha256(key.encode()).digest()[0] % 16
        return cls.TEST if bucket < 2 else cls.VALIDATION if bucket == 2 else cls.TRAIN


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a task.

    Attributes:
        level: difficulty, from 1.
        prompt: what the model reads; empty for running text.
        target: what it should write, or the running text.
        key: what makes the document the same problem as another, whatever the order of its options.
        fields: the columns of the lm-eval document beside ``level``.
    """

    level: int
    prompt: str
    target: str
    key: str
    fields: dict[str, Any]


class Draw:
    """Random choices that are the same on every platform and every version of Python."""

    def __init__(self, *seed: object) -> None:
        digest = sha256("/".join(map(str, seed)).encode()).digest()
        self._next = Random(int.from_bytes(digest[:8], "big")).random

    def between(self, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``, both included."""
        return low + int(self._next() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[int(self._next() * len(items))]

    def sample(self, items: Sequence[T], size: int) -> list[T]:
        """``size`` different positions of the items, in random order."""
        pool = list(items)
        return [pool.pop(int(self._next() * len(pool))) for _ in range(size)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All the items, in random order."""
        return self.sample(items, len(items))


Maker = Callable[[Draw, int], Document]
"""Makes a document of a level from random draws."""


def documents(maker: Maker, levels: Sequence[int], split: Split, *seed: object) -> Iterator[Document]:
    """An endless stream of different documents of one split, going round the levels."""
    seen: set[str] = set()
    for index in count():
        for attempt in count():
            draw = Draw(*seed, split, index, attempt)
            document = maker(draw, levels[index % len(levels)])
            if Split.of(document.key) is split and document.key not in seen:
                break
        seen.add(document.key)
        yield document


def first(size: int, maker: Maker, levels: Sequence[int], split: Split) -> list[Document]:
    """The first documents of a split, as they are published: the seed is part of the data."""
    return list(islice(documents(maker, levels, split, "pocket", 1), size))
