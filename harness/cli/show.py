"""``harness show RUN``: one run in full."""

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def show(
    run: Annotated[str, Argument(help="A run's id or the beginning of it, or its folder.")],
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    as_json: Annotated[bool, Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Show a run: its scores, the work it did, how it was made."""
    from rich.table import Table

    from harness.cli.display import plain, stdout
    from harness.store import MANIFEST, Store

    folder = Store(output_path).find(run)
    record = folder.record()
    if as_json:
        print(json.dumps(record.model_dump(mode="json"), indent=2))  # noqa: T201
        return
    console = stdout()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in record.model_dump(mode="json").items():
        if name == "scores":
            for score in record.scores:
                stderr = "" if score.stderr is None else f" ±{score.stderr:.6g}"
                table.add_row(
                    plain(f"{score.task} {score.metric},{score.filter}"),
                    plain(f"{score.value:.6g}{stderr}" if score.value is not None else "-"),
                )
        elif isinstance(value, dict):
            for key, part in value.items():
                table.add_row(plain(f"{name}.{key}"), plain(part if isinstance(part, str) else json.dumps(part)))
        else:
            table.add_row(plain(name), plain(value if isinstance(value, str) else json.dumps(value)))
    console.print(table)
    try:
        command = json.loads((folder.path / MANIFEST).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    console.print()
    console.print(plain(f"made by: {command}"))
