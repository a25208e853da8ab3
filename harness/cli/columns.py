"""Tables of text for a terminal: no number is ever cut, and what has no room on the line begins a second block."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from harness.core.text import printable

_LONGEST: Final = 32
"""Characters that a part of a word is given whole; a longer one may be cut."""
_SHORTEST: Final = 12
"""Characters that every text can be folded to."""
_PARTS: Final = re.compile(r".+?(?:[,+:;/|_]+|$)")
_FINE: Final = re.compile(r".+?(?:[,+:;/|_]+|-(?=[^\W\d])|$)")
"""Parts of a long word, each with the sign that ends it: a label or a folder is broken where a reader would."""


@dataclass(frozen=True)
class Column:
    """A column of a table, with a cell for every row.

    Attributes:
        least: characters below which a text is not folded; None for what is never broken, such as a number.
        is_left: texts stand left, numbers right.
        styles: of the cells, where they have any.
    """

    heading: str
    cells: Sequence[str]
    least: int | None = None
    is_left: bool = False
    styles: Sequence[str] = ()

    @property
    def lines(self) -> Iterator[str]:
        """Every line of the heading, and every cell, unfolded."""
        return map(printable, (*self.heading.split("\n"), *self.cells))

    @property
    def width(self) -> int:
        """Characters of the longest line."""
        return max(map(cell_len, self.lines))

    @property
    def needed(self) -> int:
        """The fewest characters that it can be given without cutting a part of a word."""
        if self.least is None:
            return self.width
        parts = (part for line in self.lines for word in line.split() for part in _FINE.findall(word))
        return min(self.width, max(self.least, min(max(map(cell_len, parts), default=0), _LONGEST)))


def left(heading: str, cells: Sequence[str], least: int | None = None, styles: Sequence[str] = ()) -> Column:
    """A column of texts; only those with a ``least`` are folded."""
    return Column(heading, cells, least, is_left=True, styles=styles)


def show(
    console: Console, lead: Sequence[Column], rest: Sequence[Column] = (), dim: Collection[int] = (), gap: int = 2
) -> None:
    """Print a table in as many blocks as it needs: each has the ``lead``, and the columns that it has room for.

    Args:
        dim: rows, from 0, that are not to be read like the others.
        gap: spaces between columns.
    """
    for number, line in enumerate(blocks(lead, rest, console.width, dim, gap)):
        if number:
            console.print()
        for each in line:
            console.print(each, no_wrap=True, overflow="ignore", crop=False)


def blocks(
    lead: Sequence[Column], rest: Sequence[Column], width: int, dim: Collection[int] = (), gap: int = 2
) -> list[list[Text]]:
    """The lines of each block of a table."""
    widest = max((column.needed for column in rest), default=0)
    needed = [column.needed for column in lead]
    if sum(needed) + gap * len(lead) + widest > width:  # then words are broken
        needed = [each.width if each.least is None else min(each.least, each.width, _SHORTEST) for each in lead]
    room = width - sum(needed) - gap * len(lead) + gap  # the last column has no space after it
    parts: list[list[Column]] = [[]]
    for column in rest:
        if parts[-1] and sum(each.needed + gap for each in (*parts[-1], column)) > room:
            parts.append([])
        parts[-1].append(column)
    return [_block([*lead, *part], [*needed, *(column.needed for column in part)], width, dim, gap) for part in parts]


def _block(columns: Sequence[Column], needed: list[int], width: int, dim: Collection[int], gap: int) -> list[Text]:
    """One block; texts that are folded share what the others leave."""
    spare = width - sum(needed) - gap * (len(columns) - 1)
    widths = []
    for column, least in zip(columns, needed, strict=True):
        given = max(0, min(spare, column.width - least))
        spare -= given
        widths.append(least + given)
    lines = list[Text]()
    if any(column.heading for column in columns):
        head = [
            [line for part in column.heading.split("\n") for line in folded(part, given)]
            for column, given in zip(columns, widths, strict=True)
        ]
        tall = max(map(len, head))
        lines += _row([[""] * (tall - len(cell)) + cell for cell in head], columns, widths, ["bold"] * len(head), gap)
    for index, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        styles = ["dim" if index in dim else column.styles[index] if column.styles else "" for column in columns]
        lines += _row(list(map(folded, cells, widths)), columns, widths, styles, gap)
    return lines


def _row(
    cells: Sequence[list[str]], columns: Sequence[Column], widths: Sequence[int], styles: Sequence[str], gap: int
) -> Iterator[Text]:
    """The lines of one row."""
    for number in range(max(map(len, cells))):
        line = Text()
        for cell, column, width, style in zip(cells, columns, widths, styles, strict=True):
            part = cell[number] if number < len(cell) else ""
            space = " " * (width - cell_len(part))
            line.append(part + space if column.is_left else space + part, style)
            line.append(" " * gap)
        line.rstrip()
        yield line


def folded(text: str, width: int) -> list[str]:
    """A text in lines of a width, broken between words; a word that is longer than a line, at its signs."""
    lines, line = [], ""
    for piece in _pieces(printable(text), width):
        if line and cell_len(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
    return [*lines, line.rstrip()]


def _pieces(text: str, width: int) -> Iterator[str]:
    """Words with the spaces after them; long words in parts."""
    for word in re.findall(r"\S+\s*|\s+", text):
        if cell_len(word.rstrip()) <= width:
            yield word
            continue
        for part in _PARTS.findall(word):
            for fine in [part] if cell_len(part.rstrip()) <= width else _FINE.findall(part):
                yield from [fine] if cell_len(fine.rstrip()) <= width else chop_cells(fine, width)
