"""``harness report RUNS``: tables and figures of a comparison, for a paper or a mail."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


def report(
    runs: Annotated[
        list[str] | None, Argument(help="Runs: ids, beginnings of ids, or folders. Without any, all of --results.")
    ] = None,
    results: Annotated[Path, Option("--results", help="Folder of results.")] = Path("runs"),
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of the report.")] = Path("report"),
    cost: Annotated[str, Option("--cost", help="Cost of the Pareto figure.")] = "flops",
) -> None:
    """Write tables (CSV, Markdown, LaTeX), figures (SVG, PNG) with their data, and one self-contained HTML page."""
    from rich.console import Console

    from harness.cli.display import note
    from harness.reports.report import write
    from harness.results.store import Store
    from harness.run.renewal import renew_stored

    store = Store(results)
    folders = [store.find(name) for name in runs or ()] or [folder for folder in store.folders() if folder.finished]
    for folder in folders:
        renew_stored(store, folder)
    written = write(folders, output_path, cost, partial(note, Console(stderr=True, highlight=False)))
    typer.echo(f"{len(written)} files in {output_path}/; begin with {output_path / 'report.html'}")
