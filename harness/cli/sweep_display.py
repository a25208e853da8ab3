"""What a person sees of a sweep: the plan, a live table on a terminal, or a line for each run that ends."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as Grating

from harness.cli import display
from harness.cli.columns import left, show
from harness.core.text import duration

if TYPE_CHECKING:
    from harness.sweep.board import Board
    from harness.sweep.grid import Grid, Place
    from harness.sweep.items import Item, Outcome
    from harness.sweep.launcher import Launcher

_ROWS = 200  # of a plan that a person reads
_FAILURES = 20


@dataclass
class Lines:
    """A line on standard error for each run that ends.

    Attributes:
        failures: what failed, with the reason.
    """

    failures: list[tuple[str, str]] = field(default_factory=list, init=False)
    _console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False), init=False)

    @contextmanager
    def watching(self, board: "Board") -> Iterator[None]:
        """Watch a sweep for the length of a ``with`` block."""
        yield

    def say(self, message: str) -> None:
        """A sentence."""
        self._console.print(display.plain(message), style="dim", soft_wrap=True)

    def ended(self, board: "Board", item: "Item", outcome: "Outcome") -> None:
        """A line for an item that has ended."""
        if outcome.state == "failed":
            self.failures.append((item.name, outcome.reason))
        elif item.kind == "compare":
            return
        self._line(board, item, outcome)

    def _line(self, board: "Board", item: "Item", outcome: "Outcome") -> None:
        count = f"{board.ended}/{board.total} " if item.kind == "quality" else ""
        what = outcome.score if outcome.state == "done" else f"{outcome.state}: {outcome.reason}"
        self.say(f"{count}{item.name}{': ' if what else ' done'}{what}{_left(board)}")


class Table(Lines):
    """A live table of what the workers are at, below the lines of failures."""

    @contextmanager
    def watching(self, board: "Board") -> Iterator[None]:
        """Show the table for the length of a ``with`` block."""
        with Live(
            get_renderable=lambda: _live(board), console=self._console, refresh_per_second=2, transient=True
        ) as live:
            self._console = live.console
            yield

    def _line(self, board: "Board", item: "Item", outcome: "Outcome") -> None:
        if outcome.state != "done":
            super()._line(board, item, outcome)


def _live(board: "Board") -> Group:
    """What each worker is at and for how long, and how many runs are done."""
    with board.lock:
        doing = sorted(board.doing.items())
    table = Grating.grid(padding=(0, 2))
    for number, (item, since) in doing:
        table.add_row(f"worker {number + 1}", display.plain(item.name), duration(monotonic() - since))
    return Group(table, display.plain(f"{counted(board)}{_left(board)}"))


def counted(board: "Board") -> str:
    """How many runs ended how, in words."""
    with board.lock:
        counts = dict(board.counts)
    words = [f"{counts[state]} {state}" for state in _ORDER if counts.get(state)]
    to_come = board.total - sum(counts.values())
    words += [f"{to_come} to come"] if to_come > 0 else []
    words += [f"costs of {board.costs} task{'s' if board.costs > 1 else ''} to come"] if board.costs > 0 else []
    return f"{board.total} run{'' if board.total == 1 else 's'}: {', '.join(words)}"


_ORDER = ("done", "lowered", "there already", "failed", "failed before", "refused")


def _left(board: "Board") -> str:
    left_s = board.left_s
    return f", about {duration(left_s)} left" if left_s and board.ended < board.total else ""


def plan(grid: "Grid", launcher: "Launcher", *, as_json: bool) -> None:
    """Every run with its id and state, and how long those that are to be made will take."""
    from harness.sweep.forecast import Forecast

    forecast, rows, total = Forecast(grid), list[dict[str, Any]](), 0
    with redirect_stdout(sys.stderr):  # tasks may print as they load
        for place in grid.places():
            total += 1
            seconds = forecast.count(place)
            if as_json or total <= _ROWS:
                rows.append(_row(place, seconds))
    refused = [
        {"model": model, "method": label, "state": "refused", "reason": reason}
        for model, reasons in grid.refused.items()
        for label, reason in reasons.items()
    ]
    if as_json:
        print(json.dumps([*rows, *refused], indent=2))  # noqa: T201
        return
    console = display.stdout()
    cells = {name: [str(row[name]) for row in rows] for name in _HEADINGS}
    lead = [left("id", cells["id"]), left("method", cells["method"], 12)]
    several = len(grid.request.seeds) > 1
    texts = [left(name, cells[name], 12) for name in ("model", "task", *(["seeds"] if several else []))]
    show(console, lead, [*texts, left("state", cells["state"])])
    if total > len(rows):
        display.note(console, f"and {total - len(rows):,} more runs: --json prints them all")
    for each in refused:
        display.note(console, f"{each['method']} is refused on {each['model']}: {each['reason']}")
    with redirect_stdout(sys.stderr):
        sentences = forecast.sentences(launcher, display.Reporter())
    for sentence in sentences:
        display.note(console, sentence)


_HEADINGS = ("id", "method", "model", "task", "seeds", "state")


def _row(place: "Place", seconds: float | None) -> dict[str, Any]:
    spec = place.spec
    seeds = list(spec.job.seeds)
    return {
        "id": spec.id,
        "state": place.state,
        "method": spec.stack.label,
        "model": spec.model.name,
        "task": spec.task.name,
        "seeds": ",".join(map(str, seeds if len(set(seeds)) > 1 else seeds[:1])),
        "expected_s": seconds,
    }


def results(grid: "Grid", board: "Board", watcher: Lines, *, as_json: bool) -> None:
    """What came of the runs, and what failed."""
    if as_json:
        failures = [{"what": what, "reason": reason} for what, reason in watcher.failures]
        counts = {state.replace(" ", "_"): board.counts[state] for state in _ORDER}
        print(json.dumps({"runs": board.total, **counts, "failures": failures}, indent=2))  # noqa: T201
        return
    console = display.stdout()
    display.say(console, counted(board), style="bold")
    for model, reasons in grid.refused.items():
        for label, reason in reasons.items():
            display.note(console, f"{label} is refused on {model}: {reason}")
    for what, reason in watcher.failures[:_FAILURES]:
        display.note(console, f"{what} failed: {reason}")
    if len(watcher.failures) > _FAILURES:
        display.note(console, f"and {len(watcher.failures) - _FAILURES} more failed")
    if board.counts["failed before"]:
        display.note(console, "runs that failed before are left alone: --retry_failed makes them again")
    folder = "" if str(grid.store.root) == "runs" else f" -o {grid.store.root}"
    display.note(console, f"`harness ls runs{folder}` lists them, `harness report` compares them")
