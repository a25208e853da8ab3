"""Contexts in the language of the bundled model, which knows a thousand words: facts about things, and stories.

The fox is 47 years old. The lamp is 81 years old. Sam was a curious boy who lived near the school. ...
The lamp is 81
"""

from typing import Final

from ..pocket import text
from ..pocket.splits import Draw
from ..pocket.words import NOUNS
from .documents import Document

HIDDEN: Final = 8


def needle(draw: Draw, size: int, tokens: int) -> Document:
    """One fact among ``size`` sentences of stories."""
    return _asked(draw, size, 1)


def keys(draw: Draw, size: int, tokens: int) -> Document:
    """Eight facts among ``size`` sentences of stories, one of which is asked for."""
    return _asked(draw, size, HIDDEN)


def pairs(draw: Draw, size: int, tokens: int) -> Document:
    """As many facts as a list of ``size`` sentences holds, each noun once; what is left is stories after it."""
    return _asked(draw, max(0, size - len(NOUNS)), min(size, len(NOUNS)))


def _asked(draw: Draw, size: int, hidden: int) -> Document:
    """Facts at places of their own among sentences; one of them is asked for."""
    ages = {noun: draw.between(10, 99) for noun in draw.shuffled(NOUNS)[:hidden]}
    place = draw.between(0, 999)
    depths = sorted(draw.between(0, 999) for _ in ages)
    sentences = list[str]()
    while len(sentences) < size:
        sentences += text.sentences(draw)
    del sentences[size:]
    for depth, (noun, age) in zip(reversed(depths), reversed(ages.items()), strict=True):
        sentences.insert(depth * (size + 1) // 1000, f"The {noun} is {age} years old.")
    noun = list(ages)[place * hidden // 1000]
    return Document(" ".join(sentences), f"\nThe {noun} is", (str(ages[noun]),))
