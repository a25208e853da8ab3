"""Multiple choice with four options, in the shape of ARC, from a look-up to an order that must be inferred.

    Ada has a drum. Ben has a fig. Cora has a lamp. Dan has a rake.
    Question: Who has the lamp?
    Answer: Cora

Level 1 looks up, 2 knows what kind of thing a noun is, 3 compares numbers, 4 joins two conditions that may be
negated, and 5 puts four people in order from three shuffled comparisons.
"""

from itertools import pairwise
from typing import Final

from .splits import Document, Draw, Split
from .words import CATEGORIES, NAMES, NOUNS, with_article

LEVELS: Final = (1, 2, 3, 4, 5)
ORDERS: Final = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
)


def make(draw: Draw, level: int) -> Document:
    """A question of the level, with its options in random order."""
    makers = {1: _look_up, 2: _category, 3: _comparison, 4: _conditions, 5: _order}
    context, question, right, wrong = makers[level](draw)
    options = draw.shuffled([right, *wrong])
    if not context:
        question = f"{question}: {', '.join(options)}?"
    query = f"{context}\nQuestion: {question}" if context else f"Question: {question}"
    return Document(
        level=level,
        prompt=f"{query}\nAnswer:",
        target=f" {right}",
        key=f"{context} {question}" if context else f"{question.split(':')[0]}: {sorted(options)}",
        fields={"query": query, "choices": options, "answer": options.index(right)},
    )


Question = tuple[str, str, str, list[str]]
"""Context, question, the right option, the wrong ones. Without a context the question names its options."""


Scene = tuple[str, list[str], list[tuple[str, ...]]]
"""Context, the four names, and for each name the questions that it answers."""


def lesson(draw: Draw, level: int) -> list[tuple[str, str]]:
    """A scene for training with a question for each name, as prompts and targets that follow one another."""
    context, names, phrases = SCENES[level](draw)
    turns: list[tuple[str, str]] = []
    for asked in draw.shuffled(range(4)):
        question = _phrased(draw, phrases[asked])
        if Split.of(f"{context} {question}") is Split.TRAIN:
            beginning = "" if turns else context
            turns.append((f"{beginning}\nQuestion: {question}\nAnswer:", f" {names[asked]}"))
    return turns


def _look_up(draw: Draw) -> Question:
    return _asked(draw, *_belongings(draw))


def _conditions(draw: Draw) -> Question:
    return _asked(draw, *_possessions(draw))


def _asked(draw: Draw, context: str, names: list[str], phrases: list[tuple[str, ...]]) -> Question:
    asked = draw.between(0, 3)
    question = _phrased(draw, phrases[asked])
    return context, question, names[asked], names[:asked] + names[asked + 1 :]


def _phrased(draw: Draw, phrases: tuple[str, ...]) -> str:
    return phrases[0] if len(phrases) == 1 or not draw.between(0, 1) else phrases[1]


def _belongings(draw: Draw) -> Scene:
    names, things = draw.sample(NAMES, 4), draw.sample(NOUNS, 4)
    facts = [f"{name} has {with_article(thing)}." for name, thing in zip(names, things, strict=True)]
    return " ".join(facts), names, [(f"Who has the {thing}?",) for thing in things]


def _possessions(draw: Draw) -> Scene:
    names, (first, second) = draw.sample(NAMES, 4), draw.sample(NOUNS, 2)
    a, b = with_article(first), with_article(second)
    held = (f"{a} and {b}", f"{a} but no {second}", f"{b} but no {first}", f"no {first} and no {second}")
    # The same conditions the other way round, so that the words of the fact cannot simply be found again.
    swapped = (f"{b} and {a}", f"no {second} but {a}", f"no {first} but {b}", f"no {second} and no {first}")
    facts = draw.shuffled([f"{name} has {what}." for name, what in zip(names, held, strict=True)])
    phrases: list[tuple[str, ...]] = [
        (f"Who has {one}?", f"Who has {other}?") for one, other in zip(held, swapped, strict=True)
    ]
    return " ".join(facts), names, phrases


def _category(draw: Draw) -> Question:
    kind, *others = draw.sample(list(CATEGORIES), 4)
    wrong = [draw.pick(CATEGORIES[other]) for other in others]
    return "", f"Which of these is {with_article(kind)}", draw.pick(CATEGORIES[kind]), wrong


def _comparison(draw: Draw) -> Question:
    numbers = sorted(draw.sample(range(10, 100), 4))
    word = draw.pick(("largest", "smallest"))
    right = numbers.pop(-1 if word == "largest" else 0)
    return "", f"Which number is the {word}", str(right), [str(number) for number in numbers]


def _order(draw: Draw) -> Question:
    names = draw.sample(NAMES, 4)
    more, most, least = draw.pick(ORDERS)
    facts = [f"{one} is {more} than {two}." for one, two in pairwise(names)]
    word = draw.pick((most, least))
    right = names.pop(0 if word == most else -1)
    return " ".join(draw.shuffled(facts)), f"Who is the {word}?", right, names


SCENES: Final = {1: _belongings, 4: _possessions}
"""The levels whose contexts can be asked about in several ways."""
