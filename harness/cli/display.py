"""What a person sees: sentences, progress bars, and one table per task. Progress goes to stderr, results to stdout."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
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
from rich.text import Text

from harness.cli.columns import Column, folded, left, show
from harness.cli.lines import Lines
from harness.core import environment
from harness.core.progress import Bar
from harness.core.text import printable

if TYPE_CHECKING:
    from harness.run.session import Session
    from harness.run.spec import RunSpec

_NARROWEST, _WIDTH = 40, 100  # columns


def stdout() -> Console:
    """Where results go: as wide as the terminal, or as COLUMNS says; at most 100 columns, and as many into a pipe."""
    console = Console(highlight=False)
    known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    width = min(max(console.width, _NARROWEST), _WIDTH) if known else _WIDTH
    return Console(highlight=False, width=width)


def plain(text: object) -> Text:
    """Text from a record as rich shows it: no markup, no control characters."""
    return Text(printable(text))


def say(console: Console, sentence: str, lead: str = "", style: str = "dim") -> None:
    """A sentence beside the tables, broken between words; a ``lead`` stands before its first line."""
    for number, line in enumerate(folded(sentence, console.width - len(lead))):
        text = plain(f"{' ' * len(lead) if number else lead}{line}")
        console.print(text, style=style, no_wrap=True, overflow="ignore", crop=False)


def note(console: Console, sentence: str) -> None:
    """One of several sentences below a table."""
    say(console, sentence, "· ")


def facts(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Names with what is to be said of each."""
    names, values = [name for name, _ in rows], [value for _, value in rows]
    show(console, [left("", names, 24, ["dim"] * len(names))], [left("", values, 30)])


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
    cells = {name: [str(row[name]) for row in rows] for name in ("id", "method", "model", "task", "documents", "state")}
    lead = [left("id", cells["id"]), left("method", cells["method"], 12)]
    texts = [left(name, cells[name], 14) for name in ("model", "task")]
    console = stdout()
    show(console, lead, [*texts, Column("documents", cells["documents"]), left("state", cells["state"])])
    with redirect_stdout(sys.stderr):
        estimate = session.estimate()
    for sentence in [*session.plan.notes, *(estimate.lines() if estimate else ())]:
        note(console, sentence)


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
        say(console, f"{preparation['method']} · prepared on {preparation['task']}", style="bold")
        rows = [
            (name, value if isinstance(value, str) else json.dumps(value))
            for state in preparation["state"]
            for name, value in state.items()
        ]
        facts(console, rows)
    if folder is not None:
        name = preparations[0]["method"].partition(":")[0]
        say(console, f"state in {folder}/ · `harness run --method {name}:state={folder} ...`")


def configurations(session: "Session", *, on_stderr: bool) -> None:
    """The tasks' configurations as lm-eval holds them, as JSON."""
    configs = {name: task.dump_config() for spec in session.plan.specs for name, task in spec.task.tasks.items()}
    print(json.dumps(configs, indent=2, default=str), file=sys.stderr if on_stderr else sys.stdout)
