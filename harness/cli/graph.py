"""The table of a job's times without launch overhead: a regime of its own, below the costs of single requests."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from harness.cli.columns import Column, left, show
from harness.reports.numbers import TERMINAL

if TYPE_CHECKING:
    from harness.results.graph import Graph
    from harness.results.record import RunRecord

_TITLES = {"latency": "latency\nmeasured", "ttft": "first token\nmeasured", "tpot": "each token\nmeasured"}


def show_graphs(console: Console, records: "Sequence[RunRecord]") -> None:
    """A row for every method that was measured: milliseconds, and over dense's."""
    rows = [(record.method.label, section) for record in records if (section := _section(record)) is not None]
    if not rows:
        return
    sections = [section for _, section in rows]
    lead = [
        left("captured steps", [label for label, _ in rows], 18),
        left("by", [each.captured_by for each in sections], 13),
    ]
    numbers = []
    for name, title in _TITLES.items():
        if any(name in each.typical for each in sections):
            numbers.append(Column(title, [_milliseconds(each.typical.get(name)) for each in sections]))
            numbers.append(Column("over dense's\n[95 %]", [_ratio(each, name) for each in sections]))
    numbers.append(Column("tokens\nthat differ", [f"{each.differences} of {each.tokens}" for each in sections]))
    console.print()
    show(console, lead, numbers, gap=1)


def graph_sentences(record: "RunRecord") -> Iterator[str]:
    """What a reader of one run's captured steps must know."""
    section = _section(record)
    if section is None:
        if reason := record.missing.get("time.graph"):
            yield f"captured steps: {reason}"
        return
    if not section.reads:
        yield "captured steps: prompts are read without, as what is read decides what runs"
    yield from (f"captured steps: {doubt}" for doubt in section.doubts)


def _section(record: "RunRecord") -> "Graph | None":
    return record.time.graph if record.time else None


def _milliseconds(seconds: float | None) -> str:
    return TERMINAL.unknown if seconds is None else f"{seconds * 1e3:.3g} ms"


def _ratio(section: "Graph", name: str) -> str:
    info = section.ratios.get(name)
    return "" if info is None else f"{TERMINAL.ratio(info.value)} {TERMINAL.interval(info.low, info.high)}".strip()
