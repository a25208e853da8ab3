"""Word problems of 1 to 5 steps with a worked solution, in the shape of GSM8K.

    Question: Mia has 12 nuts. Mia finds 7 more nuts. Mia loses 5 nuts. How many nuts does Mia have?
    Answer: 12+7=19 19-5=14 #### 14

The level is the number of steps. Numbers grow with it, and from level 3 on a sentence about somebody else's
things has to be ignored.
"""

from typing import Final

from .splits import Document, Draw
from .words import COUNTABLE, NAMES

LEVELS: Final = (1, 2, 3, 4, 5)
LARGEST: Final = {1: 20, 2: 60, 3: 105, 4: 110, 5: 120}
"""The largest number that may be held at each level."""
MOST: Final = 20
"""The largest number that is gained or lost at once."""


def make(draw: Draw, level: int) -> Document:
    """A problem of ``level`` steps."""
    owner, other = draw.sample(NAMES, 2)
    thing = draw.pick(COUNTABLE)
    largest = LARGEST[level]
    held = draw.between(2, largest // 2)
    sentences, steps = [f"{owner} has {held} {thing}."], []
    for _ in range(level):
        sentence, step, held = _step(draw, owner, other, thing, held, largest)
        sentences.append(sentence)
        steps.append(step)
    if level >= 3:
        aside = f"{other} has {draw.between(2, largest)} {draw.pick(COUNTABLE)}."
        sentences.insert(draw.between(1, level), aside)
    question = f"{' '.join(sentences)} How many {thing} does {owner} have?"
    answer = f"{' '.join(steps)} #### {held}"
    return Document(
        level=level,
        prompt=f"Question: {question}\nAnswer:",
        target=f" {answer}",
        key=question,
        fields={"question": question, "answer": answer},
    )


def _step(draw: Draw, owner: str, other: str, thing: str, held: int, largest: int) -> tuple[str, str, int]:
    """One event: its sentence, its line of the solution, and what the owner holds after it."""
    kinds = ["lose"] * (held > 3) + ["gain"] * (held < largest - 2) + ["times"] * (1 < held <= largest // 2)
    kind = draw.pick(kinds)
    if kind == "gain":
        more = draw.between(2, min(largest - held, MOST))
        verb = draw.pick(("finds", "buys", "wins"))
        return f"{owner} {verb} {more} more {thing}.", f"{held}+{more}={held + more}", held + more
    if kind == "times":
        times = draw.between(2, min(largest // held, 3))
        return f"Then {owner} has {times} times as many.", f"{held}*{times}={held * times}", held * times
    less = draw.between(2, min(held - 1, MOST))
    event = draw.pick((f"gives {less} {thing} to {other}", f"loses {less} {thing}", f"sells {less} {thing}"))
    return f"{owner} {event}.", f"{held}-{less}={held - less}", held - less
