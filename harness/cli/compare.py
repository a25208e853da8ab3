"""``harness compare``: two stored runs on the same documents, score by score and cost by cost."""

import json
from dataclasses import replace
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
    from harness.reports.rows import Row
    from harness.results.compare import compare as compared
    from harness.results.store import Store
    from harness.run.renewal import renew_stored

    store = Store(output_path)
    folders = store.find(a), store.find(b)
    for folder in folders:
        renew_stored(store, folder)
    comparison = compared(*folders, margin=margin)
    if as_json:
        scores = [score.model_dump(mode="json") for score in comparison.scores]
        plain_json = {"a": comparison.a.id, "b": comparison.b.id, "scores": scores, "unlike": comparison.unlike}
        print(json.dumps(plain_json | {"costs": comparison.baseline.model_dump(mode="json")}, indent=2))  # noqa: T201
        return
    console = stdout()
    console.print(plain(f"{comparison.b.method.label} against {comparison.a.method.label}"), style="bold")
    documents = f"{comparison.baseline.documents} documents of both"
    how = f" · {comparison.b.evaluation.scoring}" if comparison.b.evaluation.scoring else ""
    model = Row(comparison.b.model_dump(mode="json"), None).model
    about = f"{comparison.a.evaluation.task} · {model} · {documents}{how}"
    console.print(plain(about), style="dim")
    console.print()
    console.print(_score_table(comparison))
    console.print()
    console.print(_cost_table(comparison))
    console.print()
    for line in _notes(comparison, margin):
        console.print(plain(f"· {line}"), style="dim")


def _score_table(comparison: "Comparison") -> "Table":
    from rich.table import Table

    from harness.cli.display import plain
    from harness.cli.summary import difference
    from harness.reports.numbers import TERMINAL

    scores = replace(TERMINAL, decimals=4)  # two runs may differ in the last documents of thousands
    table = Table(box=None, pad_edge=False)
    table.add_column("score", overflow="fold")
    for heading in ("A", "B", "B - A [95 %]", "p", "up", "down", "visible", "no loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    base_values = {(score.task, score.metric, score.filter): score.value for score in comparison.a.scores}
    for score in comparison.scores:
        base, change = base_values.get((score.task, score.metric, score.filter)), score.vs_baseline
        if change is None or base is None or score.value is None:
            continue
        task = "" if score.task == comparison.b.evaluation.task else f"{score.task} "
        p = change.p_adjusted if change.p_adjusted is not None else change.p
        cells = (
            f"{task}{score.metric}" + ("" if score.filter == "none" else f" {score.filter}"),
            scores.score(base),
            scores.score(score.value),
            difference(score),
            TERMINAL.unknown if p is None else f"{p:.3f}" if p >= 0.001 else "<0.001",
            TERMINAL.unknown if change.gained is None else str(change.gained),
            TERMINAL.unknown if change.lost is None else str(change.lost),
            TERMINAL.score(change.detectable),
            {True: "yes", False: "open", None: TERMINAL.unknown}[change.noninferior],
        )
        table.add_row(*map(plain, cells))
    return table


def _cost_table(comparison: "Comparison") -> "Table":
    from rich.table import Table

    from harness.cli.display import plain
    from harness.cli.summary import interval_of
    from harness.results.baseline import COSTS, TOTALS

    table = Table(box=None, pad_edge=False)
    for heading in ("cost", "kind"):
        table.add_column(heading)
    table.add_column("B / A", justify="right")
    places = {cost.name: place for place, cost in enumerate((*COSTS, *TOTALS))}
    ratios = comparison.baseline.ratios.items()
    for name, info in sorted(ratios, key=lambda ratio: places.get(ratio[0], len(places))):
        title, kind = _titled(name)
        table.add_row(plain(title), plain(kind), plain(interval_of(info)))
    return table


def _titled(name: str) -> tuple[str, str]:
    """A ratio's title and kind."""
    from harness.results.baseline import COSTS, TOTALS

    titles: dict[str, tuple[str, str]] = {cost.name: (cost.title, cost.kind) for cost in (*COSTS, *TOTALS)}
    return titles.get(name, (name.replace(":", " on "), "modelled"))


def _notes(comparison: "Comparison", margin: float) -> list[str]:
    from harness.results.baseline import same_length

    notes = [
        "p: two-sided, exact McNemar for right-or-wrong scores, else t; of several tasks adjusted (Holm)",
        "intervals: of each score alone, not adjusted",
        "up, down: documents that scored higher, lower",
        "visible: smallest difference that this test finds in four of five tries with so many documents",
        f"no loss: yes where a loss of {margin:g} or more is excluded at 95 %, open where it is not",
        "measured times are compared within one run of `harness run` alone, where methods take turns",
    ]
    changes = [(score, score.vs_baseline) for score in comparison.scores]
    notes += [f"{score.task} {score.metric}: {change.reason}" for score, change in changes if change and change.reason]
    names: dict[str, list[str]] = {}
    for name, info in comparison.baseline.ratios.items():
        if info.reason:
            names.setdefault(info.reason, []).append(_titled(name)[0])
    notes += [f"no interval of {', '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]
    for name, record in (("A", comparison.a), ("B", comparison.b)):
        if record.flops is None:
            notes.append(f"no FLOPs and bytes moved of {name}: {record.missing.get('flops', 'no reason was kept')}")
    length = comparison.baseline.output_tokens
    if not same_length(length):
        notes.append(f"B wrote {length:.2f}x the tokens of A: its costs are of the same tokens, totals of all of them")
    changed = comparison.baseline.answers_changed
    if changed is not None:
        notes.insert(0, f"{changed:.1%} of the answers differ")
    return [*notes, *(f"they differ in {what}" for what in comparison.unlike)]
