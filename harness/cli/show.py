"""``harness show NAME``: a method's documentation, or one run in full."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from harness.core.errors import UnknownNameError
from harness.core.files import parse_json

if TYPE_CHECKING:
    from rich.padding import Padding

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
        ids = [folder.path.name.rpartition("_")[2] for folder in store.folders()]
        known = [*registry.names(), *ids]
        see = f"`harness ls methods` and `harness ls runs` list them; runs were looked for in {store.root}."
        raise UnknownNameError("method or run", name, known, see=see) from None


def _show_method(description: "Description") -> None:
    from rich.table import Table

    from harness.cli.display import plain, stdout
    from harness.contract.describe import paper_url

    console = stdout()
    console.print(plain(f"{description.name} · {description.family}"), style="bold")
    console.print(plain(description.summary))
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    if description.paper:
        facts.add_row("paper", plain(paper_url(description.paper) or description.paper))
    for question, answer in description.facts.items():
        facts.add_row(question, plain(answer))
    facts.add_row("class", plain(description.source))
    console.print()
    console.print(facts)
    if description.parameters:
        console.print("\nParameters", style="bold")
    for parameter in description.parameters:
        default = "must be given" if parameter.default is None else f"default {parameter.default or 'empty'}"
        about = "; ".join(filter(None, (parameter.type, parameter.range, default)))
        console.print(plain(f"  {parameter.name}  ({about})"))
        console.print(_indented(parameter.text, 6))
    for heading, text in description.sections.items():
        console.print()
        console.print(plain(heading or "Details"), style="bold")
        console.print(_indented(text, 2))
    console.print("\nSettings that `harness check` tries on small models, mild to strong", style="bold")
    for example in description.examples:
        console.print(plain(f"  {example}"))
    if description.neutral:
        console.print(plain(f"  {description.neutral}  (the dense model, bit for bit)"))


def _indented(text: str, columns: int) -> "Padding":
    """A docstring's paragraphs without the quotes of their code."""
    from rich.console import Group
    from rich.padding import Padding

    from harness.cli.display import plain

    paragraphs = text.replace("``", "").split("\n\n")
    return Padding(Group(*map(plain, paragraphs)), (0, 0, 0, columns), expand=False)


def _show_run(folder: "RunFolder", *, as_json: bool) -> None:
    from rich.table import Table

    from harness.cli.display import plain, stdout
    from harness.reports.notes import notes
    from harness.reports.numbers import TERMINAL
    from harness.reports.rows import Row
    from harness.results.store import MANIFEST

    record = folder.record()
    if as_json:
        print(json.dumps(record.model_dump(mode="json"), indent=2))  # noqa: T201
        return
    console = stdout()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for score in record.scores:
        stderr = "" if score.stderr is None else f" ±{score.stderr:.6g}"
        against = "" if score.vs_baseline is None else f", {score.vs_baseline.difference:+.6g} against dense"
        value = "-" if score.value is None else f"{score.value:.6g}{stderr}{against}"
        table.add_row(plain(f"{score.task} {score.metric},{score.filter}"), plain(f"{value}, n = {score.n}"))
    plain_record = record.model_dump(mode="json")
    row = Row(plain_record, None)
    table.add_row("saving", plain(row.saving))
    for name, value in plain_record.items():
        if name == "scores":
            continue
        if isinstance(value, dict):
            for key, part in value.items():
                table.add_row(plain(f"{name}.{key}"), plain(part if isinstance(part, str) else json.dumps(part)))
        else:
            table.add_row(plain(name), plain(value if isinstance(value, str) else json.dumps(value)))
    console.print(table)
    if said := [*row.apart, *notes(row, TERMINAL)]:
        console.print()
        for sentence in said:
            console.print(plain(f"· {sentence}"), style="dim")
    try:
        command = parse_json((folder.path / MANIFEST).read_bytes())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    console.print()
    console.print(plain(f"made by: {command}"))
