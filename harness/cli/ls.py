"""``harness ls methods|tasks|suites|models|runs|states``: what there is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from harness.core.errors import StoreError

if TYPE_CHECKING:
    from harness.model.listing import ListedModel

app = typer.Typer(
    help="List methods, tasks, suites, models, runs or prepared states.", no_args_is_help=True, rich_markup_mode=None
)

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
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    as_json: _Json = False,
) -> None:
    """Runs in a results folder, the newest first; one that cannot be read is listed with the reason."""
    from harness.results.model_names import distinct_names
    from harness.results.store import Store

    rows, models = [], {}
    for folder in Store(output_path).folders():
        run_id = folder.path.name.rpartition("_")[2]
        row = {"id": run_id, "method": "", "model": "", "task": "", "score": "", "state": "unfinished"}
        if folder.finished:
            try:
                record = folder.record()
            except StoreError as error:
                row["state"] = f"unreadable: {error}"
            else:
                best = next(iter(record.scores), None)
                score = f"{best.metric} {best.value:.4f}" if best and best.value is not None else ""
                models[run_id] = record.model.model_dump(mode="json")
                row |= {"method": record.method.label, "task": record.evaluation.task}
                row |= {"score": score, "state": "finished"}
        rows.append(row)
    names = distinct_names(models.values())
    for row in rows:
        if (model := models.get(row["id"])) is not None:
            row["model"] = names[model["fingerprint"]]
    _print(rows, as_json=as_json)
    if not rows and not as_json:
        typer.echo(f"no runs in {output_path}/", err=True)


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


def _print(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        return
    from rich.table import Table

    from harness.cli.display import plain, stdout

    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*map(plain, row.values()))
    stdout().print(table)
