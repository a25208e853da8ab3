"""``harness submit RUN``: pack a run for a pull request to the leaderboard."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option


def submit(
    name: Annotated[list[str], Argument(help="Runs: ids, beginnings of ids, or folders.")],
    results: Annotated[Path, Option("--results", help="Folder of results.")] = Path("runs"),
    output_path: Annotated[Path, Option("--output_path", "-o", help="The leaderboard's folder of results.")] = Path(
        "leaderboard/data"
    ),
) -> None:
    """Check runs as `harness validate` does and pack each, with its dense run, into a small folder of its id.

    Packing keeps scores, answers and work of every document and what the method learned, if that is small, and takes
    out traces and names of folders.
    """
    from harness.leaderboard.submit import submit as pack
    from harness.results.store import Store

    for each in name:
        for folder in pack(each, Store(results), output_path):
            size = sum(path.stat().st_size for path in folder.iterdir())
            typer.echo(f"{folder} ({size / 1000:.0f} kB)")
    typer.echo(f"Now: harness validate {output_path}; then commit {output_path} on a branch and open a pull request.")
