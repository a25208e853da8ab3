"""Variable tracking (RULER): which variables have a value, through chains of assignments among stories."""

from typing import Final

from ..pocket import text
from ..pocket.splits import Draw
from .documents import Document

HOPS: Final = 4
LETTERS: Final = "ABCDEFGHJKLMNPQRSTUVWXYZ"
TASK: Final = "In the text, variables are assigned values. Memorize the chains of assignments.\n\n"


def chains(tokens: int) -> int:
    """Chains at a length: eight, as in Sparse Frontier's setting (arXiv:2504.17768), and fewer in short texts."""
    return min(8, max(2, tokens // 256))


def variables(draw: Draw, size: int, tokens: int) -> Document:
    """Chains of four hops in ``size`` sentences; all five variables of the first chain are asked for."""
    count = chains(tokens)
    names = _names(draw, (count + 1) * (HOPS + 1))
    example = _chain(names[: HOPS + 1], str(draw.between(10_000, 99_999)))
    values = draw.sample(range(10_000, 100_000), count)
    groups = [names[start : start + HOPS + 1] for start in range(HOPS + 1, len(names), HOPS + 1)]
    lines = [_chain(group, str(value)) for group, value in zip(groups, values, strict=True)]
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
    shown = _asked(example[0].rpartition(" ")[2].rstrip(".")) + f" {', '.join(names[: HOPS + 1])}.\n\n"
    context = TASK + " ".join(example) + shown + TASK + " ".join(sentences)
    return Document(context, _asked(str(values[0])), tuple(groups[0]))


def _asked(value: str) -> str:
    return (
        f"\n\nQuestion: Which variables have the value {value}?\n"
        f"Answer: By the chains of assignments in the text above, {HOPS + 1} variables have the value {value}:"
    )


def _chain(names: list[str], value: str) -> list[str]:
    assigned = [value, *(f"VAR {name}" for name in names[:-1])]
    return [f"VAR {name} = {source}." for name, source in zip(names, assigned, strict=True)]


def _names(draw: Draw, count: int) -> list[str]:
    """Names of five letters, each once."""
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(draw.pick(LETTERS) for _ in range(5))] = None
    return list(names)
