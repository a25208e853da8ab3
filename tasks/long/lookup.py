"""Look-ups: the value of a key among many (Lost in the Middle, arXiv:2307.03172), and a pass key in idle talk."""

from typing import Final

from ..pocket.splits import Draw
from .documents import Document, distinct

IDLE: Final = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ASK: Final = (
    "There is an important number hidden inside a lot of irrelevant text. Find it and memorize it. You will be asked "
    "for it."
)


def pairs(draw: Draw, size: int, tokens: int) -> Document:
    """A JSON object of ``size`` keys, one of which is asked for."""
    place = draw.between(0, 999)
    names = distinct(lambda: _digits(draw), 2 * size)
    entries = dict(zip(names[::2], names[1::2], strict=True))
    key = list(entries)[place * size // 1000]
    lines = ",\n ".join(f'"{name}": "{content}"' for name, content in entries.items())
    task = "Extract the value of the key from the JSON object below.\n\nJSON data:\n"
    question = f'\n\nKey: "{key}"\nValue of the key: "'
    return Document(f"{task}{{{lines}}}", question, (entries[key],))


def passkey(draw: Draw, size: int, tokens: int) -> Document:
    """A pass key in ``size`` repetitions of idle talk (Landmark Attention, arXiv:2305.16300)."""
    number, place = draw.between(10_000, 99_999), draw.between(0, 999) * (size + 1) // 1000
    key = f"The pass key is {number}. Remember it. {number} is the pass key."
    lines = "\n".join([*[IDLE] * place, key, *[IDLE] * (size - place)])
    return Document(f"{ASK}\n{lines}", "\nWhat is the pass key? The pass key is", (str(number),))


def _digits(draw: Draw) -> str:
    """Eight hexadecimal digits."""
    return f"{draw.between(0, 16**8 - 1):08x}"
