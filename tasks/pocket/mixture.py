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
from .words import NAMES, NOUNS

Encode = Callable[[str], list[int]]
"""Token ids of a text, without a begin or end token."""

ROW: Final = 256
"""Tokens of a row that short documents are packed into."""
SHORT_ROWS, RECALL_ROWS = 10, 2
EARLY_ROWS = 6, 6
"""The same until long contexts begin: copying comes first."""
LONG: Final = {3: (2, 512), 7: (1, 1024)}
"""Rows and tokens of long recall contexts, at these steps of every eight, once long contexts have begun."""
LONG_FROM: Final = 1600
LEVEL_STEPS: Final = 400
"""Every so many steps a harder level joins, and recall contexts grow: copying is learned where it is short."""
ECHOES: Final = 2
"""One recall lesson in so many is a plain repetition, from which copying starts."""
DIGITS: Final = tuple("0123456789")
SHOTS: Final = 8
"""One document in so many is a run of several of the same kind, so that few-shot prompts are not new."""


@dataclass(frozen=True)
class Share:
    """A kind of short documents, its part of the mixture, and what its tokens weigh: prompt, target, end."""

    kind: ModuleType
    parts: int
    prompt: float
    target: float
    end: float


SHARES: Final = (
    Share(arithmetic, 12, 0.1, 1.0, 1.0),
    Share(choice, 10, 0.2, 8.0, 1.0),
    Share(text, 2, 0.0, 0.5, 0.5),
)
"""The few tokens that answer a choice weigh about as much as the many of a worked solution."""


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


def batches(step: int, *, seed: object, encode: Encode, end: int) -> tuple[Batch, Batch]:
    """The batch of short documents and the recall batch of a step."""
    short = _short(Draw(seed, step, "short"), f"{seed}/{step}", 1 + step // LEVEL_STEPS, encode, end)
    draw = Draw(seed, step, "recall")
    late = step >= LONG_FROM
    short_rows, recall_rows = (SHORT_ROWS, RECALL_ROWS) if late else EARLY_ROWS
    if late and step % 8 in LONG:
        rows, width = LONG[step % 8]
        recalled = _batch([[_lesson(draw, width, encode, end)] for _ in range(rows)], width, end, owned=False)
    else:
        lessons = _lessons(draw, min(ROW, 64 * (1 + step // LEVEL_STEPS)), 8 if late else ECHOES, encode, end)
        recalled = _batch(_packed(lessons, recall_rows), ROW, end, owned=True)
    return _batch(_packed(short, short_rows), ROW, end, owned=True), recalled


def _short(draw: Draw, stream: str, levels: int, encode: Encode, end: int) -> Iterator[Piece]:
    """An endless stream of short documents, each from its begin token to its end token."""
    sources = [(documents(one.kind.make, one.kind.LEVELS[:levels], Split.TRAIN, stream), one) for one in SHARES]
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
            turns = [(document.prompt, document.target)]
            if share.kind is choice and document.level in choice.SCENES:
                turns = choice.lesson(draw, document.level) or turns
            for turn, (prompt, target) in enumerate(turns):
                separator = "\n\n" if shot and not turn else ""
                for content, weight in ((separator + prompt, share.prompt), (target, share.target)):
                    ids += encode(content)
                    weights += [weight] * (len(ids) - len(weights))
        yield [*ids, end], [*weights, share.end]


def _lessons(draw: Draw, longest: int, echoes: int, encode: Encode, end: int) -> Iterator[Piece]:
    while True:
        if draw.between(1, echoes) == 1:
            yield echo(draw, draw.between(8, longest // 3), encode, end)
        else:
            yield _lesson(draw, draw.between(40, longest), encode, end)


def echo(draw: Draw, words: int, encode: Encode, end: int) -> Piece:
    """Words and digits in no order, and the same once more: nothing but copying predicts the second time."""
    kinds = (NOUNS, NAMES, DIGITS)
    said = encode(" ".join(draw.pick(draw.pick(kinds)) for _ in range(words)))
    return [end, *said, *said, end], [0.0] * (1 + len(said)) + [1.0] * (len(said) + 1)


def _packed(pieces: Iterator[Piece], count: int) -> list[list[Piece]]:
    """Rows filled with whole documents, until one after another fits nowhere."""
    rows: list[list[Piece]] = [[] for _ in range(count)]
    room, misfits = [ROW + 1] * count, 0
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
