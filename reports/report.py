"""A comparison on paper: tables, figures with their data beside them, and one page of HTML that holds it all."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from harness.core.errors import ReportError, StoreError
from harness.core.files import writing
from harness.reports.figures import Plot
from harness.reports.notes import notes
from harness.reports.numbers import PAGE
from harness.reports.plots import plots
from harness.reports.regimes import REGIMES
from harness.reports.rows import Row, rows
from harness.reports.undrawn import undrawn
from harness.results.samples import SampleLine
from harness.results.store import RunFolder


@dataclass(frozen=True)
class Group:
    """Runs that may be compared, with their figures, and why others are not drawn."""

    title: str
    rows: list[Row]
    plots: list[Plot]
    undrawn: list[str]


def write(
    folders: Sequence[RunFolder], output: Path, cost: str = "flops", say: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write the report of some runs; the files that were written.

    Args:
        say: called with why a figure is not drawn.

    Raises:
        ReportError: no runs, an unknown cost, or the libraries for reports are not installed.
        StoreError: a run cannot be read.
        DiskError: the place cannot be written.
    """
    require_libraries()
    from pandas import DataFrame

    from harness.reports import tables

    groups = _groups(folders, cost)
    every_row = [row for group in groups for row in group.rows]
    printed = tables.printed(every_row)
    said = list(dict.fromkeys(note for group in groups for note in _notes(group.rows)))
    texts = {
        "comparison.csv": tables.frame(every_row).to_csv(index=False),
        "comparison.md": _markdown(printed, said),
        "comparison.tex": tables.latex(printed, [f"{name}: {note}" for name, note in said]),
        "report.html": _html(groups),
    }
    for name, (title, regime) in REGIMES.items():
        if lines := regime.printed(every_row):
            texts[f"{name}.csv"] = regime.frame(every_row).to_csv(index=False)
            texts["comparison.md"] += f"\n{title}:\n\n{_markdown(DataFrame(lines), ())}"
    for sentence in dict.fromkeys(each for group in groups for each in group.undrawn):
        say(sentence)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (output / name).write_text(text, encoding="utf-8", errors="replace")
        written = [output / name for name in texts]
        for number, group in enumerate(groups):
            for plot in group.plots:
                written += write_plot(plot, output / (plot.name if len(groups) == 1 else f"{plot.name}_{number + 1}"))
    return written


def require_libraries() -> None:
    """Refuse to draw without what draws.

    Raises:
        ReportError: a library for reports is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        import pandas  # noqa: F401
        import tabulate  # type: ignore[import-untyped]  # noqa: F401
    except ModuleNotFoundError as error:
        raise ReportError(f"{error.name} is not installed: pip install 'efficiency-harness[report]'") from error


def _groups(folders: Iterable[RunFolder], cost: str) -> list[Group]:
    from harness.reports.columns import columns

    runs = {(record := folder.record().model_dump(mode="json"))["id"]: (record, folder) for folder in folders}
    if not runs:
        raise ReportError("no finished runs: `harness ls runs` lists what there is")
    records = [record for record, _ in runs.values()]
    known = [column.key for column in columns(records)]
    if cost not in known:
        raise ReportError(f"no cost {cost!r}; there are {', '.join(known)}")
    samples = {run_id: _samples(folder) for run_id, (_, folder) in runs.items()}
    table = sorted(rows(records), key=lambda row: (row.group, not row.is_dense, row.record["method"]["label"]))
    groups = []
    for key in dict.fromkeys(row.group for row in table):
        members = [row for row in table if row.group == key]
        first = members[0]
        title = f"{first.record['evaluation']['task']} · {first.model} · {first.hardware} · {first.settings}"
        drawn = list(plots(members, samples, cost))
        missing = list(undrawn(members, samples, cost, {plot.name for plot in drawn}))
        groups.append(Group(title, members, drawn, missing))
    return groups


def _samples(folder: RunFolder) -> list[SampleLine]:
    """A run's documents; without them figures of documents are left out."""
    try:
        return list(folder.samples())
    except StoreError:
        return []


def _notes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """What must be read with the numbers of a table's rows, with the method's name before it."""
    return [(row.record["method"]["label"], note) for row in rows for note in notes(row, PAGE)]


def _markdown(table: Any, said: Sequence[tuple[str, str]]) -> str:
    """The table for a README, with its notes below: what could be markup in a name is code."""
    quoted = table.assign(method=[_code(name) for name in table["method"]])
    lines = [str(quoted.to_markdown(index=False, disable_numparse=True)), *([""] if said else [])]
    lines += [f"- {_code(name)}: {escape(note, quote=False)}" for name, note in said]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "¦") + "`"


def write_plot(plot: Plot, stem: Path) -> list[Path]:
    """Write a figure as SVG and PNG, and its table as CSV; the files."""
    written = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("svg", "png", "csv")]
    written[0].write_bytes(plot.svg)
    written[1].write_bytes(plot.png)
    plot.data.to_csv(written[2], index=False)
    return written


def _html(groups: Sequence[Group]) -> str:
    """One page that needs no other file: pictures are inside it, and it can be mailed."""
    from jinja2 import Environment, FileSystemLoader
    from pandas import DataFrame

    from harness.reports import tables

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    shown = [
        {
            "title": group.title,
            "tables": [
                ("", tables.printed(group.rows).to_dict("split")),
                *(
                    (title, DataFrame(regime.printed(group.rows)).to_dict("split"))
                    for title, regime in REGIMES.values()
                ),
            ],
            "plots": [{"title": plot.title, "picture": _picture(plot)} for plot in group.plots],
            "undrawn": group.undrawn,
            "warnings": sorted({text for row in group.rows for text in [*row.apart, *row.record["warnings"]]}),
            "notes": [f"{name}: {note}" for name, note in _notes(group.rows)],
            "runs": [
                {"label": row.record["method"]["label"], "record": json.dumps(row.record, indent=1)}
                for row in group.rows
            ],
        }
        for group in groups
    ]
    return environment.get_template("report.html").render(groups=shown)


def _picture(plot: Plot) -> str:
    """The figure as an address that holds its own bytes; an image can run no script."""
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg).decode()
