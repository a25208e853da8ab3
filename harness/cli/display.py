"""What a person sees: sentences, progress bars, and one table per task. Progress goes to stderr, results to stdout."""

import json
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from harness.cli.lines import Lines
from harness.core import environment
from harness.core.progress import Bar
from harness.core.text import printable

if TYPE_CHECKING:
    from harness.run.session import Session
    from harness.run.spec import RunSpec

_WIDTH = 100


def stdout() -> Console:
    """Where results go; at most 100 columns, also into a file."""
    console = Console(highlight=False)
    return console if console.is_terminal and console.width < _WIDTH else Console(highlight=False, width=_WIDTH)


def plain(text: object) -> Text:
    """Text from a record as rich shows it: no markup, no control characters."""
    return Text(printable(text))


@dataclass(frozen=True)
class Column:
    """A column of a table of results, with a cell for every row.

    Attributes:
        least: characters below which a text that may be folded is not folded; None for a number, which is never broken.
        is_left: texts stand left, numbers right.
    """

    heading: str
    cells: Sequence[str]
    least: int | None = None
    is_left: bool = False

    @property
    def width(self) -> int:
        """The longest line."""
        return max(len(line) for text in (self.heading, *self.cells) for line in text.split("\n"))

    @property
    def needed(self) -> int:
        """The fewest characters that it can be given."""
        return self.width if self.least is None else min(self.least, self.width)


def tables(lead: Sequence[Column], numbers: Sequence[Column], width: int, dim: Collection[int] = ()) -> list[Table]:
    """Tables of one set of rows that fit a terminal: each has the ``lead``, and the numbers that it has room for.

    Args:
        dim: rows, from 0, that are not to be read like the others.
    """
    parts: list[list[Column]] = [[]]
    room = width - sum(column.needed + 1 for column in lead)
    for column in numbers:
        if parts[-1] and sum(each.width + 1 for each in parts[-1]) + column.width > room:
            parts.append([])
        parts[-1].append(column)
    return [_table(lead, part, width, dim) for part in parts]


def _table(lead: Sequence[Column], numbers: Sequence[Column], width: int, dim: Collection[int]) -> Table:
    """One table; texts that may be folded share what the numbers leave."""
    spare = width - sum(column.width + 1 for column in numbers) - sum(column.needed + 1 for column in lead)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for column in (*lead, *numbers):
        given = min(spare + 1, column.width - column.needed)  # the last column has no space after it
        spare -= given
        table.add_column(
            column.heading,
            justify="left" if column.is_left else "right",
            overflow="fold",
            no_wrap=column.least is None,
            width=column.needed + given,
        )
    for index, cells in enumerate(zip(*(column.cells for column in (*lead, *numbers)), strict=True)):
        table.add_row(*map(plain, cells), style="dim" if index in dim else None)
    return table


class _Bar:
    """A rich task that learns its total as it goes."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(printable(title), total=None)
        self._expected = 0

    def expect(self, requests: int) -> None:
        self._expected += requests
        self._progress.update(self._task, total=self._expected)

    def advance(self, requests: int) -> None:
        self._progress.advance(self._task, requests)


class Reporter:
    """Reports a session's progress on stderr."""

    def __init__(self) -> None:
        # one voice for all processes of a launch
        self._console = Console(stderr=True, highlight=False, quiet=environment.rank() != 0)

    def say(self, message: str) -> None:
        """Print a sentence."""
        self._console.print(plain(message), style="dim")

    @contextmanager
    def bar(self, title: str) -> Iterator[Bar]:
        """A progress bar with elapsed and remaining time; lines where there is no terminal to draw one on."""
        if not self._console.is_terminal:
            yield Lines(self.say, title)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield _Bar(progress, title)


def plan(session: "Session", *, as_json: bool) -> None:
    """The resolved runs and their ids, and which of them are done."""
    with redirect_stdout(sys.stderr):  # tasks may print as they load
        specs = session.plan.specs
    rows = []
    for spec in specs:
        folder = session.folder(spec)
        started = any(folder.path.glob("journal*"))
        state = "finished" if folder.finished else "interrupted" if started else "to run"
        rows.append({"id": spec.id, "state": state, "folder": str(folder.path), **_described(spec)})
    if as_json:
        print(json.dumps(rows, indent=2))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "method", "model", "task", "documents", "state"):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(plain(row[key]) for key in ("id", "method", "model", "task", "documents", "state")))
    stdout().print(table)
    with redirect_stdout(sys.stderr):
        estimate = session.estimate()
    for note in [*session.plan.notes, *(estimate.lines() if estimate else ())]:
        stdout().print(plain(f"· {note}"), style="dim")


def _described(spec: "RunSpec") -> dict[str, Any]:
    job, task = spec.job, spec.task
    return {
        "method": spec.stack.label,
        "model": spec.model.name,
        "task": task.name,
        "documents": sum(1 for each in task.tasks.values() for _ in task.documents(each, job.limit, job.samples)),
        "identity": spec.identity,
    }


def prepared(preparations: list[dict[str, Any]], folder: Path | None) -> None:
    """What each preparation chose, fact by fact, and how its state is used."""
    console = stdout()
    for preparation in preparations:
        console.print(plain(f"{preparation['method']} · prepared on {preparation['task']}"), style="bold")
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        for facts in preparation["state"]:
            for name, value in facts.items():
                table.add_row(plain(name), plain(value if isinstance(value, str) else json.dumps(value)))
        console.print(table)
    if folder is not None:
        name = preparations[0]["method"].partition(":")[0]
        console.print(plain(f"state in {folder}/ · `harness run --method {name}:state={folder} ...`"), style="dim")


def configurations(session: "Session", *, on_stderr: bool) -> None:
    """The tasks' configurations as lm-eval holds them, as JSON."""
    configs = {name: task.dump_config() for spec in session.plan.specs for name, task in spec.task.tasks.items()}
    print(json.dumps(configs, indent=2, default=str), file=sys.stderr if on_stderr else sys.stdout)
