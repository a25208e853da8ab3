"""``harness ls methods|tasks|suites|models|runs|states``: what there is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from harness.model.listing import ListedModel

app = typer.Typer(
    help="List methods, tasks, suites, models, runs or prepared states.", no_args_is_help=True, rich_markup_mode=None
)

_Globs = list[str] | None
_Json = Annotated[bool, Option("--json", help="Print as JSON.")]


@app.command()
def methods(as_json: _Json = False) -> None:
    """Methods that can be run, built in and installed; a broken one is listed with its error."""
    from harness.contract import registry

    rows = [
        {
            "name": item.name,
            "family": item.family or "?",
            "saving": item.savings or "?",
            "from": "built in" if item.built_in else f"{item.distribution} {item.version}",
            "what": f"broken: {item.error}" if item.error else item.summary,
        }
        for item in registry.listings()
    ]
    _print(rows, as_json=as_json)


@app.command()
def tasks(
    pattern: Annotated[str | None, Argument(help="A glob, such as 'arc*'; all names are searched.")] = None,
    as_json: _Json = False,
) -> None:
    """Bundled tasks, or with a pattern any task, group or tag of lm-eval that fits, and whether the data is here."""
    from fnmatch import fnmatch

    from harness.evaluate.availability import Catalogue
    from harness.evaluate.task_index import scan
    from harness.evaluate.tasks import BUNDLED

    bundled, catalogue = scan(BUNDLED), Catalogue()
    chosen = bundled if pattern is None else catalogue.names
    rows = [
        {
            "name": name,
            "kind": chosen[name].kind.removeprefix("PY_").lower(),
            "from": "bundled" if name in bundled else "lm-eval",
            "data": catalogue.summary(name),
            **_known_scores(catalogue.metadata(name)),
        }
        for name in sorted(chosen)
        if pattern is None or fnmatch(name, pattern)
    ]
    _print(rows, as_json=as_json)
    if pattern is None and not as_json:
        typer.echo(
            f"\nand {len(catalogue.names) - len(bundled)} names of lm-eval: give a pattern, such as "
            "`harness ls tasks 'arc*'`",
            err=True,
        )


@app.command()
def suites(as_json: _Json = False) -> None:
    """Lists of tasks with their flags, for ``harness run --suite``."""
    from harness.evaluate import suites

    rows = []
    for name in suites.names():
        suite = suites.load(name)
        tasks = ", ".join(request.task for request in suite.tasks)
        rows.append({"name": name, "tasks": tasks, "what": suite.summary, "paper": suite.paper or ""})
    _print(rows, as_json=as_json)


@app.command()
def models(as_json: _Json = False) -> None:
    """Models with a short name, and the decoders in the hub cache; what is known of each, and whether it is here."""
    from dataclasses import asdict

    from harness.model.listing import listed_models

    models = listed_models()
    rows = [asdict(model) for model in models] if as_json else [_in_words(model) for model in models]
    _print(rows, as_json=as_json)


@app.command()
def runs(
    pattern: Annotated[
        str | None,
        Argument(help="A glob, such as 'layer-drop*', that the id, folder, name, method, model or task fits."),
    ] = None,
    method: Annotated[
        _Globs, Option("--method", "-m", help="Methods, as given to `run`, or globs. Repeatable.")
    ] = None,
    task: Annotated[_Globs, Option("--task", "--tasks", "-t", help="Tasks, or globs. Repeatable.")] = None,
    model: Annotated[_Globs, Option("--model", "--pretrained", help="Models, or globs. Repeatable.")] = None,
    name: Annotated[_Globs, Option("--name", help="What `run --name` called them, or globs. Repeatable.")] = None,
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    as_json: _Json = False,
) -> None:
    """Runs in a results folder, the newest first: finished, running, failed, or unreadable, with the reason."""
    from harness.cli import listed
    from harness.results.store import Store

    wanted = {"name": name, "method": method, "model": model, "task": task}
    every = listed.runs(Store(output_path))
    chosen = [run for run in every if listed.fits(run, pattern, wanted)]
    rows = [dict(run.row) for run in chosen]
    if not as_json and not any(row["name"] for row in rows):
        rows = [{heading: cell for heading, cell in row.items() if heading != "name"} for row in rows]
    _print(rows, as_json=as_json)
    if not rows and not as_json:
        typer.echo(
            f"none of the {len(every)} runs in {output_path}/ fits" if every else f"no runs in {output_path}/", err=True
        )


@app.command()
def states(as_json: _Json = False) -> None:
    """Prepared states on this machine, the one used last first, with what they take of their quota."""
    from datetime import datetime

    from harness.contract.states import States

    cache = States.of_user()
    kept = cache.all()
    rows = [
        {
            "method": state.label,
            "size": f"{state.size / 1e6:.2f} MB",
            "used": datetime.fromtimestamp(state.used).astimezone().isoformat(" ", "minutes"),
            "folder": str(state.folder),
        }
        for state in kept
    ]
    _print(rows, as_json=as_json)
    if not as_json:
        total = sum(state.size for state in kept)
        typer.echo(f"{len(kept)} states, {total / 1e6:.1f} MB of {cache.quota / 1e6:.0f} MB", err=True)


def _known_scores(metadata: dict[str, Any]) -> dict[str, str]:
    """What a bundled task's file says of it: which score models reach by guessing, and what dense ones reach."""
    scores = metadata.get("scores", {})
    return {
        "chance": str(metadata.get("chance", "")),
        "dense": ", ".join(f"{model} {score}" for model, score in scores.items()) if isinstance(scores, dict) else "",
        "for": str(metadata.get("made_for", "any model")),
    }


def _in_words(model: "ListedModel") -> dict[str, str]:
    """A model as people read it, and the command that fetches it where it is not here."""
    return {
        "name": model.name,
        "parameters": "?" if model.parameters is None else f"{model.parameters / 1e6:.1f} M",
        "layers": str(model.layers or "?"),
        "positions": str(model.positions or "?"),
        "licence": model.licence or "?",
        "on disk": "-" if model.bytes is None else f"{model.bytes / 1e6:.0f} MB",
        "here": "yes" if model.download is None else f"no: {model.fetch} ({model.download / 1e6:.0f} MB)",
    }


_FOLDED = {
    "method": 12,
    "model": 12,
    "task": 14,
    "score": 11,
    "state": 10,
    "from": 12,
    "what": 24,
    "tasks": 24,
    "paper": 16,
    "data": 12,
    "dense": 12,
    "for": 10,
    "licence": 12,
    "here": 24,
    "folder": 24,
}
"""Texts that may take several lines, with the characters that each needs at least."""


def _print(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        return
    from harness.cli.columns import left, show
    from harness.cli.display import stdout

    columns = [left(name, [str(row[name]) for row in rows], _FOLDED.get(name)) for name in rows[0]]
    first = columns[0].heading
    leads = {first, "method"} if first == "id" else {first}
    show(
        stdout(),
        [column for column in columns if column.heading in leads],
        [column for column in columns if column.heading not in leads],
    )
