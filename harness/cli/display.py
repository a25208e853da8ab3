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
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from harness.record import RunRecord, Score
    from harness.session import Session
    from harness.spec import RunSpec

_WIDTH = 100


def stdout() -> Console:
    """Where results go; at most 100 columns, also into a file."""
    console = Console(highlight=False)
    return console if console.is_terminal and console.width < _WIDTH else Console(highlight=False, width=_WIDTH)


def plain(text: object) -> Text:
    """Text from a record as text: no markup, no control characters."""
    return Text("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)))


class _Bar:
    """A rich task that learns its total as it goes."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(plain(title).plain, total=None)
        self._expected = 0

    def expect(self, requests: int) -> None:
        self._expected += requests
        self._progress.update(self._task, total=self._expected)

    def advance(self, requests: int) -> None:
        self._progress.advance(self._task, requests)


class Reporter:
    """Reports a session's progress on stderr."""

    def __init__(self) -> None:
        first = os.environ.get("RANK", "0") == "0"  # one voice for all processes of a launch
        self._console = Console(stderr=True, highlight=False, quiet=not first)

    def say(self, message: str) -> None:
        """Print a sentence."""
        self._console.print(plain(message), style="dim")

    @contextmanager
    def bar(self, title: str) -> Iterator[_Bar]:
        """A progress bar with elapsed and remaining time."""
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
        specs = session.specs
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


def _described(spec: "RunSpec") -> dict[str, Any]:
    job, task = spec.job, spec.task
    return {
        "method": spec.stack.label,
        "model": spec.model.name,
        "task": task.name,
        "documents": sum(1 for each in task.tasks.values() for _ in task.documents(each, job.limit, job.samples)),
        "identity": spec.identity,
    }


def results(records: "Sequence[RunRecord]", folder: Path, *, as_json: bool) -> None:
    """All records as JSON, or one table per task and what a reader must know about it."""
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))  # noqa: T201
        return
    if not records:  # another process of the launch has them
        return
    console = stdout()
    for task in dict.fromkeys(record.evaluation.task for record in records):
        rows = [record for record in records if record.evaluation.task == task]
        console.print()
        console.print(_title(rows[0]))
        console.print(_table(rows))
        for note in _notes(rows):
            console.print(plain(f"· {note}"), style="dim")
    console.print()
    console.print(plain(f"records in {folder}/ · `harness show ID` for one of them"), style="dim")


def configurations(session: "Session", *, on_stderr: bool) -> None:
    """The tasks' configurations as lm-eval holds them, as JSON."""
    configs = {name: task.dump_config() for spec in session.specs for name, task in spec.task.tasks.items()}
    print(json.dumps(configs, indent=2, default=str), file=sys.stderr if on_stderr else sys.stdout)


def _title(record: "RunRecord") -> Text:
    scored = f"{max(score.n for score in record.scores)} documents" if record.scores else "no metrics"
    title = plain(f"{record.evaluation.task} · {record.model.name} · {scored}")
    title.stylize("bold")
    return title


def _table(records: "Sequence[RunRecord]") -> Table:
    """A row for every method and metric; the work stands in a method's first row."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True)
    table.add_column("method", overflow="fold", min_width=18)
    table.add_column("metric", overflow="fold", min_width=18)
    for heading in ("value", "vs dense", "FLOPs", "prefill\ndepth", "decode\ndepth", "saving"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        for index, score in enumerate(_headline(record)):
            first = index == 0
            method = (record.id[:6], record.method.label) if first else ("", "")
            difference = "" if score.vs_baseline is None else f"{score.vs_baseline:+.4f}"
            work = _work(record) if first else ("", "", "", "")
            table.add_row(*map(plain, (*method, _metric(score, record), _value(score), difference, *work)))
    return table


def _headline(record: "RunRecord") -> "list[Score]":
    """The first scores of the task or group; of a group without its own, the first score of each task in it."""
    own = [score for score in record.scores if score.task == record.evaluation.task]
    first = {score.task: score for score in reversed(record.scores)}
    return own[:2] or list(reversed(first.values()))


def _metric(score: "Score", record: "RunRecord") -> str:
    task = "" if score.task == record.evaluation.task else f"{score.task} "
    filtered = "" if score.filter == "none" else f" {score.filter}"
    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
    return f"{task}{score.metric}{filtered}{arrow}"


def _value(score: "Score") -> str:
    if score.value is None:
        return "-"
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ±{score.stderr:.4f}")


def _work(record: "RunRecord") -> tuple[str, ...]:
    trace = record.trace
    flops = _engineering(record.flops.total) if record.baseline is None else f"{record.baseline.flops_ratio:.2f}x"
    depths = ["-" if depth is None else f"{depth:.0%}" for depth in (trace.mean_depth_prefill, trace.mean_depth_decode)]
    return flops, *depths, record.method.savings.replace("none", "-")


def _engineering(number: float) -> str:
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{prefix}"
    return f"{number:.0f}"


def _notes(records: "Sequence[RunRecord]") -> Iterator[str]:
    """What would mislead a reader who saw the numbers alone."""
    yield "± is one standard error; FLOPs and depth (executed share of layers) are counted from what ran"
    if any(record.evaluation.limited for record in records):
        yield "a part of the task's documents: for trying out, not for publishing"
    for record in records:
        label = record.method.label
        if record.trace.executed is False and record.method.savings == "real":
            yield f"{label}: never executed: every layer ran on every token, as in dense"
        if record.method.savings == "simulated":
            yield f"{label}: its saving is simulated: the arithmetic on paper, not the running code, does less"
        audit = record.flops.audit_ratio
        if audit is not None and abs(audit - 1) > 0.01:
            yield f"{label}: PyTorch's counter saw {audit:.3f} times the FLOPs stated here"
    more = sum(score.task == records[0].evaluation.task for score in records[0].scores) - 2
    if more > 0:
        yield f"{more} more scores in each record: `harness show {records[0].id[:6]}`"
    yield from dict.fromkeys(warning for record in records for warning in record.warnings[:3])
