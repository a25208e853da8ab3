"""What the pocket model reads in training: the batches of every step, as a function of the seed and the step.

Nothing is drawn ahead or remembered between steps, so a resumed run reads exactly what an uninterrupted one
would have. A batch of short documents is packed without cutting any; attention stays inside each document.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

from . import arithmetic, choice, recall, text
from .splits import Draw, Split, documents

Encode = Callable[[str], list[int]]
"""Token ids of a text, without a begin or end token."""

PACKED: Final = (8, 256)
"""Rows and tokens of the packed batch."""
RECALL: Final = ((4, 256), (4, 256), (4, 256), (2, 512), (4, 256), (4, 256), (4, 256), (1, 1024))
"""Rows and tokens of the recall batch, by step: long contexts are dear, so most are short."""
SHOTS: Final = 8
"""One document in so many is a run of several of the same kind, so that few-shot prompts are not new."""


@dataclass(frozen=True)
class Share:
    """A kind of short documents, its part of the mixture, and what its tokens weigh in prompt and target."""

    kind: ModuleType
    parts: int
    prompt: float
    target: float


SHARES: Final = (Share(arithmetic, 7, 0.1, 1.0), Share(choice, 10, 0.1, 4.0), Share(text, 3, 0.0, 0.25))


@dataclass(frozen=True)
class Batch:
    """Rows of tokens to learn from.

    Attributes:
        inputs: [rows, tokens] ids.
        labels: [rows, tokens] ids, the token after each input.
        weights: [rows, tokens] how much each label counts.
        owner: [rows, tokens] number of the document within its row; None where each row is one document.
    """

    inputs: Tensor
    labels: Tensor
    weights: Tensor
    owner: Tensor | None


Piece = tuple[list[int], list[float]]
"""Tokens of a document and the weight of each."""


def batches(step: int, *, seed: int, encode: Encode, end: int) -> tuple[Batch, Batch]:
    """The packed batch of short documents and the recall batch of a step."""
    pieces = _short(Draw(seed, step, "short"), f"{seed}/{step}", encode, end)
    rows, width = RECALL[step % len(RECALL)]
    draw = Draw(seed, step, "recall")
    lessons = [[_lesson(draw, width, encode, end)] for _ in range(rows)]
    return _batch(_packed(pieces), PACKED[1], end, owned=True), _batch(lessons, width, end, owned=False)


def _short(draw: Draw, stream: str, encode: Encode, end: int) -> Iterator[Piece]:
    """An endless stream of short documents, each from its begin token to its end token."""
    sources = [(documents(one.kind.make, one.kind.LEVELS, Split.TRAIN, stream), one) for one in SHARES]
    table = [source for source in sources for _ in range(source[1].parts)]
    for source, _ in sources:
        # Begin each step at another level, or the first levels would be read more often than the last.
        for _ in range(draw.between(0, 4)):
            next(source)
    while True:
        source, share = draw.pick(table)
        shots = draw.between(2, 3) if draw.between(1, SHOTS) == 1 else 1
        ids, weights = [end], [0.0]
        for shot in range(shots):
            document = next(source)
            prompt = ("\n\n" if shot else "") + document.prompt
            for content, weight in ((prompt, share.prompt), (document.target, share.target)):
                ids += encode(content)
                weights += [weight] * (len(ids) - len(weights))
        yield [*ids, end], [*weights, share.target]


def _packed(pieces: Iterator[Piece]) -> list[list[Piece]]:
    """Rows filled with whole documents, until one after another fits nowhere."""
    count, width = PACKED
    rows: list[list[Piece]] = [[] for _ in range(count)]
    room, misfits = [width + 1] * count, 0
    while misfits < count:
        piece = next(pieces)
        row = next((row for row in range(count) if room[row] >= len(piece[0])), None)
        if row is None:
            misfits += 1
        else:
            rows[row].append(piece)
            room[row] -= len(piece[0])
    return rows


def _lesson(draw: Draw, size: int, encode: Encode, end: int) -> Piece:
    context, queries = recall.lesson(draw, size)
    ids = [end, *encode(context)]
    weights = [0.0] * len(ids)
    for question, answer in queries:
        for content, weight in ((question, 0.0), (answer, 1.0)):
            ids += encode(content)
            weights += [weight] * (len(ids) - len(weights))
    return [*ids, end], [*weights, 1.0]


def _batch(rows: list[list[Piece]], width: int, end: int, *, owned: bool) -> Batch:
    """Rows of ``width`` tokens, one piece after another; the rest is padding that weighs nothing."""
    ids = torch.full((len(rows), width + 1), end)
    weights = torch.zeros(len(rows), width + 1)
    owner = torch.full((len(rows), width + 1), -1)
    for row, pieces in enumerate(rows):
        start = 0
        for number, (piece, weight) in enumerate(pieces):
            stop = min(start + len(piece), width + 1)
            ids[row, start:stop] = torch.tensor(piece[: stop - start])
            weights[row, start:stop] = torch.tensor(weight[: stop - start])
            owner[row, start:stop] = number
            start = stop
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], owner[:, :-1] if owned else None)
