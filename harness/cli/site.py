"""``harness site build|serve|check``: the leaderboard as a folder of plain files."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from harness.core.text import printable

app = typer.Typer(help="Build, serve and check the leaderboard.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def build(
    results: Annotated[Path, Option("--results", help="Folder with results, at any depth.")] = Path("runs"),
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of the site.")] = Path("site"),
    url: Annotated[
        str | None, Option("--url", help="Where it will be published; makes the feed's links absolute.")
    ] = None,
) -> None:
    """Build the site; a result that cannot be shown is named with the reason."""
    from harness.leaderboard.site import build as build_site

    built = build_site(results, output_path, url)
    for path, reason in built.refused.items():
        typer.echo(printable(f"not shown: {path}: {reason}"), err=True)
    typer.echo(f"{built.runs} runs in {output_path / 'index.html'}")


@app.command()
def serve(
    site: Annotated[Path, Argument(help="Folder of a built site.")] = Path("site"),
    port: Annotated[int, Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Serve a built site on this machine alone, until interrupted."""
    from harness.leaderboard.serve import serve as serve_site

    serve_site(site, port, typer.echo)


@app.command()
def check(site: Annotated[Path, Argument(help="Folder of a built site.")] = Path("site")) -> None:
    """Follow every link, and look for anything that would be loaded from elsewhere."""
    from harness.leaderboard.check import check as check_site

    problems = check_site(site)
    for problem in problems:
        typer.echo(printable(problem), err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{site}: every link leads somewhere, and nothing is loaded from elsewhere")
