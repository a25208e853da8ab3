"""Variable tracking (RULER): which variables have a value, through chains of assignments among stories."""

from typing import Final

from ..pocket import text
from ..pocket.splits import Draw
from .documents import Document, distinct

HOPS: Final = 4
SHOWN: Final = 3
"""Variables of the example before the text."""
LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ"
TASK: Final = "Memorize the chains of assignments in this text.\n\n"


def chains(tokens: int) -> int:
    """Chains at a length: eight, as in Sparse Frontier's setting (arXiv:2504.17768), and fewer in short texts."""
    return min(8, max(2, tokens // 256))


def variables(draw: Draw, size: int, tokens: int) -> Document:
    """Chains of four hops in ``size`` sentences; all five variables of the first chain are asked for."""
    count = chains(tokens)
    names = distinct(lambda: "".join(draw.pick(LETTERS) for _ in range(3)), SHOWN + count * (HOPS + 1))
    example, (shown, *values) = names[:SHOWN], distinct(lambda: str(draw.between(10_000, 99_999)), count + 1)
    groups = [names[start : start + HOPS + 1] for start in range(SHOWN, len(names), HOPS + 1)]
    lines = [_chain(group, value) for group, value in zip(groups, values, strict=True)]
    # every place in the text belongs to one chain, and each chain keeps its order
    places = draw.shuffled([chain for chain in range(count) for _ in range(HOPS + 1)])
    depths = sorted(draw.between(0, 999) for _ in places)
    sentences = list[str]()
    while len(sentences) < size:
        sentences += text.sentences(draw)
    del sentences[size:]
    remaining = [list(reversed(chain)) for chain in lines]  # the last assignment of a chain is inserted first
    for depth, chain in zip(reversed(depths), reversed(places), strict=True):
        sentences.insert(depth * (size + 1) // 1000, remaining[chain].pop(0))
    before = f"{TASK}{' '.join(_chain(example, shown))}{_asked(shown, SHOWN)} {', '.join(example)}.\n\n"
    context = f"{before}{TASK}{' '.join(sentences)}"
    return Document(context, _asked(values[0], HOPS + 1), tuple(groups[0]))


def _asked(value: str, count: int) -> str:
    return f"\n\nQuestion: Which variables have the value {value}?\nAnswer: {count} variables have the value {value}:"


def _chain(names: list[str], value: str) -> list[str]:
    assigned = [value, *(f"VAR {name}" for name in names[:-1])]
    return [f"VAR {name} = {source}." for name, source in zip(names, assigned, strict=True)]
