"""``harness show NAME``: a method's documentation, or one run in full."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from harness.core.errors import UnknownNameError
from harness.core.files import parse_json

if TYPE_CHECKING:
    from rich.console import Console

    from harness.contract.describe import Description
    from harness.contract.method import Method
    from harness.results.store import RunFolder, Store


def show(
    name: Annotated[
        str,
        Argument(help="A method's name or ./file.py:Class; or a run's id, the beginning of it, or its folder."),
    ],
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    as_json: Annotated[bool, Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what a method is and does, or a run: its scores, the work it did, how it was made."""
    method = _method(name)
    if method is None:
        from harness.results.store import Store

        _show_run(_run(Store(output_path), name), as_json=as_json)
        return
    from harness.contract.describe import describe

    description = describe(method)
    if as_json:
        print(json.dumps(asdict(description), indent=2))  # noqa: T201
    else:
        _show_method(description)


def _method(name: str) -> "type[Method] | None":
    """The method of that name. A run of the same letters can still be named by its folder or more of its id."""
    from harness.contract import registry

    path, colon, class_name = name.rpartition(":")
    if colon and path.endswith(".py"):
        return registry.from_file(Path(path), class_name)
    return registry.get(name) if name in registry.names() else None


def _run(store: "Store", name: str) -> "RunFolder":
    """The run of that name; an error that knows of methods too."""
    from harness.contract import registry

    try:
        return store.find(name)
    except UnknownNameError:
        ids = [folder.id for folder in store.folders()]
        known = [*registry.names(), *ids]
        see = f"`harness ls methods` and `harness ls runs` list them; runs were looked for in {store.root}."
        raise UnknownNameError("method or run", name, known, see=see) from None


def _show_method(description: "Description") -> None:
    from harness.cli.display import facts, say, stdout
    from harness.contract.describe import paper_url

    console = stdout()
    say(console, f"{description.name} · {description.family}", style="bold")
    say(console, description.summary, style="")
    paper = [("paper", paper_url(description.paper) or description.paper)] if description.paper else []
    console.print()
    facts(console, [*paper, *description.facts.items(), ("class", description.source)])
    if description.parameters:
        _heading(console, "Parameters")
    for parameter in description.parameters:
        default = "must be given" if parameter.default is None else f"default {parameter.default or 'empty'}"
        about = "; ".join(filter(None, (parameter.type, parameter.range, default)))
        say(console, f"{parameter.name}  ({about})", "  ", style="")
        _say_all(console, parameter.text, 6)
    for heading, text in description.sections.items():
        _heading(console, heading or "Details")
        _say_all(console, text, 2)
    _heading(console, "Settings that `harness check` tries on small models, mild to strong")
    for example in description.examples:
        say(console, example, "  ", style="")
    if description.neutral:
        say(console, f"{description.neutral}  (the dense model, bit for bit)", "  ", style="")


def _heading(console: "Console", text: str) -> None:
    from harness.cli.display import say

    console.print()
    say(console, text, style="bold")


def _say_all(console: "Console", text: str, columns: int) -> None:
    """A docstring's paragraphs, so many columns in, without the quotes of their code."""
    from harness.cli.display import say

    for paragraph in text.replace("``", "").split("\n\n"):
        say(console, paragraph, " " * columns, style="")


def _show_run(folder: "RunFolder", *, as_json: bool) -> None:
    from harness.cli.display import facts, note, plain, say, stdout
    from harness.reports.notes import notes
    from harness.reports.numbers import TERMINAL
    from harness.reports.rows import Row
    from harness.results.store import MANIFEST

    record = folder.record()
    if as_json:
        print(json.dumps(record.model_dump(mode="json"), indent=2))  # noqa: T201
        return
    console = stdout()
    rows = []
    for score in record.scores:
        stderr = "" if score.stderr is None else f" ±{score.stderr:.6g}"
        against = "" if score.vs_baseline is None else f", {score.vs_baseline.difference:+.6g} against dense"
        value = "-" if score.value is None else f"{score.value:.6g}{stderr}{against}"
        rows.append((f"{score.task} {score.metric},{score.filter}", f"{value}, n = {score.n}"))
    plain_record = record.model_dump(mode="json")
    row = Row(plain_record, None)
    rows.append(("saving", row.saving))
    for name, section in plain_record.items():
        if name != "scores":
            parts = (
                {f"{name}.{key}": part for key, part in section.items()}
                if isinstance(section, dict)
                else {name: section}
            )
            rows += [(key, part if isinstance(part, str) else json.dumps(part)) for key, part in parts.items()]
    facts(console, rows)
    if said := [*row.apart, *notes(row, TERMINAL)]:
        console.print()
        for sentence in said:
            note(console, sentence)
    if record.method.files:
        console.print()
        say(console, f"to make it again, in {folder.path}:")
        console.print(plain(record.command), soft_wrap=True)  # in one line, to be copied
    try:
        command = parse_json((folder.path / MANIFEST).read_bytes())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    console.print()
    say(console, f"made by: {command}")
