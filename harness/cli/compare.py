"""``harness compare``: two stored runs on the same documents, score by score and cost by cost."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from rich.table import Table

    from harness.results.compare import Comparison


def compare(
    a: Annotated[str, Argument(help="A run: its id, the beginning of it, or its folder. What B is compared with.")],
    b: Annotated[str, Argument(help="Another run on the same documents.")],
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    margin: Annotated[
        float, Option("--margin", min=0, help="Loss that non-inferiority must exclude, in the score's own unit.")
    ] = 0.01,
    as_json: Annotated[bool, Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs document by document: differences, intervals, tests, and what could have been seen."""
    from harness.cli.display import plain, stdout
    from harness.results.compare import compare as compared
    from harness.results.store import Store
    from harness.run.renewal import renew_stored

    store = Store(output_path)
    folders = store.find(a), store.find(b)
    for folder in folders:
        renew_stored(store, folder)
    found = compared(*folders, margin=margin)
    if as_json:
        scores = [score.model_dump(mode="json") for score in found.scores]
        plain_json = {"a": found.a.id, "b": found.b.id, "scores": scores, "unlike": found.unlike}
        print(json.dumps(plain_json | {"costs": found.baseline.model_dump(mode="json")}, indent=2))  # noqa: T201
        return
    console = stdout()
    console.print(plain(f"{found.b.method.label} against {found.a.method.label}"), style="bold")
    about = f"{found.a.evaluation.task} · {found.b.model.name} · {found.baseline.documents} documents of both"
    console.print(plain(about), style="dim")
    console.print()
    console.print(_score_table(found))
    console.print()
    console.print(_cost_table(found))
    console.print()
    for line in _notes(found, margin):
        console.print(plain(f"· {line}"), style="dim")


def _score_table(found: "Comparison") -> "Table":
    from rich.table import Table

    from harness.cli.display import plain
    from harness.cli.summary import difference

    table = Table(box=None, pad_edge=False)
    table.add_column("score", overflow="fold")
    for heading in ("A", "B", "B - A [95 %]", "p", "up", "down", "visible", "no loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    values = {(score.task, score.metric, score.filter): score.value for score in found.a.scores}
    for score in found.scores:
        base, change = values.get((score.task, score.metric, score.filter)), score.vs_baseline
        if change is None or base is None or score.value is None:
            continue
        task = "" if score.task == found.b.evaluation.task else f"{score.task} "
        p = change.p_adjusted if change.p_adjusted is not None else change.p
        cells = (
            f"{task}{score.metric}" + ("" if score.filter == "none" else f" {score.filter}"),
            f"{base:.4f}",
            f"{score.value:.4f}",
            difference(score),
            "-" if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001",
            "-" if change.gained is None else str(change.gained),
            "-" if change.lost is None else str(change.lost),
            "-" if change.detectable is None else f"{change.detectable:.3f}",
            {True: "yes", False: "open", None: "-"}[change.noninferior],
        )
        table.add_row(*map(plain, cells))
    return table


def _cost_table(found: "Comparison") -> "Table":
    from rich.table import Table

    from harness.cli.display import plain
    from harness.cli.summary import ratio
    from harness.results.costs import COSTS

    table = Table(box=None, pad_edge=False)
    for heading in ("cost", "kind"):
        table.add_column(heading)
    table.add_column("B / A", justify="right")
    titles = {cost.name: (cost.title, cost.kind) for cost in COSTS}
    for name, info in found.baseline.ratios.items():
        title, kind = titles.get(name, (name.replace(":", " on "), "modelled"))
        table.add_row(plain(title), plain(kind), plain(ratio(info)))
    return table


def _notes(found: "Comparison", margin: float) -> list[str]:
    notes = [
        "p: two-sided, exact McNemar for right-or-wrong scores, else by resampling; adjusted for several tasks (Holm)",
        "up, down: documents that scored higher, lower",
        "visible: smallest difference that so many documents show in four of five tries",
        f"no loss: yes where a loss of {margin:g} or more is excluded at 95 %, open where it is not",
        "measured times are compared within one run of `harness run` alone, where methods take turns",
    ]
    changed = found.baseline.answers_changed
    if changed is not None:
        notes.insert(0, f"{changed:.1%} of the answers differ")
    return [*notes, *(f"they differ in {what}" for what in found.unlike)]
