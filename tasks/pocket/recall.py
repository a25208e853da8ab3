"""Find one value in a context of 128, 256, 512 or 1,024 tokens.

    The fox is 47 years old. The lamp is 81 years old. The mill is 26 years old. ...
    The lamp is 81

Half of the documents are a list of such facts (associative recall), the other half are stories with one such
fact among their sentences (a needle). The level is the length: 1 is 128 tokens and each next one doubles it.
"""

import re
from typing import Final

from . import text
from .splits import Document, Draw
from .words import NOUNS

LEVELS: Final = (1, 2, 3, 4)
QUERY_TOKENS: Final = 9
"""Room for the begin token, the query and its answer."""
_TOKEN: Final = re.compile(r" ?[A-Za-z]+| ?[^A-Za-z0-9 ]+|[0-9]| (?=[0-9])")


def length(level: int) -> int:
    """Tokens of a document of the level."""
    return 64 << level


def tokens(sentence: str) -> int:
    """Tokens of a text in the tokenizer of the pocket model, where a word and each digit is one token."""
    return len(_TOKEN.findall(sentence))


def make(draw: Draw, level: int) -> Document:
    """A context with one query about it."""
    facts, sentences = (_list if draw.between(0, 1) else _needle)(draw, length(level) - QUERY_TOKENS)
    noun = draw.pick(list(facts))
    context = " ".join(sentences)
    beginning = query(noun)
    return Document(
        level=level,
        prompt=f"{context}{beginning}",
        target=f" {facts[noun]}",
        key=f"{context}{beginning}",
        fields={"context": context, "query": beginning.strip(), "answer": str(facts[noun])},
    )


def query(noun: str) -> str:
    """The line that asks for a noun's number, up to the number."""
    return f"\nThe {noun} is"


def lesson(draw: Draw, size: int) -> tuple[str, list[tuple[str, str]]]:
    """A context for training with as many queries and answers after it as ``size`` tokens hold."""
    room = draw.pick((size // 2, size // 2, 3 * size // 4, size - QUERY_TOKENS))
    facts, sentences = (_list if draw.between(0, 3) or size < 128 else _needle)(draw, room)
    asked = draw.shuffled(list(facts))
    queries = [(query(noun), f" {facts[noun]}") for noun in asked]
    return " ".join(sentences), queries[: max(1, (size - room) // QUERY_TOKENS)]


def _fact(noun: str, number: int) -> str:
    return f"The {noun} is {number} years old."


def _list(draw: Draw, room: int) -> tuple[dict[str, int], list[str]]:
    facts = {noun: draw.between(10, 99) for noun in draw.shuffled(NOUNS)}
    count = room // tokens(_fact(NOUNS[0], 10))
    facts = dict(list(facts.items())[:count])
    return facts, [_fact(noun, number) for noun, number in facts.items()]


def _needle(draw: Draw, room: int) -> tuple[dict[str, int], list[str]]:
    noun, number = draw.pick(NOUNS), draw.between(10, 99)
    sentences: list[str] = []
    room -= tokens(_fact(noun, number))
    while room > 0:
        for sentence in text.sentences(draw):
            room -= tokens(sentence)
            if room > 0:
                sentences.append(sentence)
    sentences.insert(draw.between(0, len(sentences)), _fact(noun, number))
    return {noun: number}, sentences
