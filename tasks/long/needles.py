"""Numbers hidden in stories (after RULER's needles, arXiv:2404.06654): one, one of many, or four of many."""

from ..pocket import text
from ..pocket.splits import Draw
from ..pocket.words import COLORS, NOUNS
from .documents import Document, distinct

HIDDEN = 8
ASKED = 4


def needle(draw: Draw, size: int, tokens: int) -> Document:
    """One number in a text."""
    return _one(draw, size, 1)


def keys(draw: Draw, size: int, tokens: int) -> Document:
    """Eight numbers of eight things, of which one is asked for."""
    return _one(draw, size, HIDDEN)


def choice(draw: Draw, size: int, tokens: int) -> Document:
    """The same, with four of the eight numbers to choose from."""
    return _one(draw, size, HIDDEN, choices=4)


def queries(draw: Draw, size: int, tokens: int) -> Document:
    """Eight numbers of eight things, of which four are asked for at once."""
    numbers = _numbers(draw, HIDDEN)
    context = _haystack(draw, size, numbers)
    asked = list(numbers)[:ASKED]
    things = ", ".join(f"the {thing}" for thing in asked[:-1]) + f" and the {asked[-1]}"
    question = (
        f"\n\nQuestion: What are the secret numbers of {things}?\n"
        f"Answer: The secret numbers of {things} are, in this order,"
    )
    return Document(context, question, tuple(numbers[thing] for thing in asked))


def _one(draw: Draw, size: int, hidden: int, choices: int = 0) -> Document:
    numbers = _numbers(draw, hidden)
    thing = next(iter(numbers))
    offered = tuple(draw.shuffled(list(numbers.values())[:choices]))
    question = f"\n\nQuestion: What is the secret number of the {thing}?\nAnswer: The secret number of the {thing} is"
    return Document(_haystack(draw, size, numbers), question, (numbers[thing],), offered)


def _numbers(draw: Draw, count: int) -> dict[str, str]:
    """Things, no two of the same noun, each with a number of seven digits that no other has."""
    things = [f"{draw.pick(COLORS)} {noun}" for noun in draw.sample(NOUNS, count)]
    return dict(zip(things, distinct(lambda: str(draw.between(1_000_000, 9_999_999)), count), strict=True))


def _haystack(draw: Draw, size: int, numbers: dict[str, str]) -> str:
    """``size`` sentences of stories with the numbers at places of their own among them."""
    facts = draw.shuffled([f"The secret number of the {thing} is {number}." for thing, number in numbers.items()])
    depths = sorted(draw.between(0, 999) for _ in facts)  # thousandths of the text, whatever its size
    sentences = list[str]()
    while len(sentences) < size:
        story = text.sentences(draw)
        sentences += [*story[:-1], f"{story[-1]}\n"]
    del sentences[size:]
    for depth, fact in zip(reversed(depths), facts, strict=True):
        sentences.insert(depth * (size + 1) // 1000, fact)
    return " ".join(sentences).replace("\n ", "\n").strip()
