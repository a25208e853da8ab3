"""The table of a job's throughput: a regime of its own, below the costs of single requests and never among them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from harness.cli.columns import Column, left, show
from harness.reports.numbers import TERMINAL

if TYPE_CHECKING:
    from harness.results.baseline import RatioInfo
    from harness.results.record import RunRecord
    from harness.results.throughput import Throughput


def show_throughput(console: Console, records: "Sequence[RunRecord]") -> None:
    """A row for every method and batch size, where any was measured: tokens a second, and over dense's."""
    sections = [(record.method.label, _section(record)) for record in records]
    rows = [
        (label if index == 0 else "", size)
        for label, section in sections
        if section is not None
        for index, size in enumerate(section.sizes)
    ]
    if not rows:
        return
    sizes = [size for _, size in rows]
    lead = [left("tokens a second", [label for label, _ in rows], 18)]
    numbers = [Column("batch\nsize", [str(size.batch_size) for size in sizes])]
    numbers += [Column("reading\nmeasured", [_rate(size.reading) for size in sizes])]
    numbers += [Column("over dense's\n[95 %]", [_ratio(size.reading_ratio) for size in sizes])]
    if any(size.writing for size in sizes):
        numbers += [Column("writing\nmeasured", [_rate(size.writing) for size in sizes])]
        numbers += [Column("over dense's\n[95 %]", [_ratio(size.writing_ratio) for size in sizes])]
    if any(size.layers_run is not None for size in sizes):
        shares = ["" if size.layers_run is None else f"{size.layers_run:.0%}" for size in sizes]
        numbers += [Column("layers run\ncounted", shares)]
    console.print()
    show(console, lead, numbers, gap=1)


def sentences(record: "RunRecord") -> Iterator[str]:
    """What a reader of one run's throughput must know."""
    section = _section(record)
    if section is None:
        if reason := record.missing.get("time.throughput"):
            yield f"throughput: {reason}"
        return
    for size, reason in section.missing.items():
        yield f"throughput, batch size {size}: {reason}"
    for each in section.sizes:
        if each.no_dense:
            yield f"throughput, batch size {each.batch_size}: nothing to compare with: {each.no_dense}"
        yield from (f"throughput, batch size {each.batch_size}: {doubt}" for doubt in each.doubts)


def _section(record: "RunRecord") -> "Throughput | None":
    return record.time.throughput if record.time else None


def _rate(tokens: float | None) -> str:
    return TERMINAL.unknown if tokens is None else f"{tokens:,.4g}" if tokens < 1000 else f"{tokens:,.0f}"


def _ratio(info: "RatioInfo | None") -> str:
    if info is None:
        return ""
    return f"{TERMINAL.ratio(info.value)} {TERMINAL.interval(info.low, info.high)}".strip()
