"""``harness compare``: two stored runs on the same documents, score by score and cost by cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

if TYPE_CHECKING:
    from rich.console import Console

    from harness.results.compare import Comparison
    from harness.results.scores import Score


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
    from harness.cli.display import note, say, stdout
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
    say(console, f"{comparison.b.method.label} against {comparison.a.method.label}", style="bold")
    documents = f"{comparison.baseline.documents} documents of both"
    how = f" · {comparison.b.evaluation.scoring}" if comparison.b.evaluation.scoring else ""
    model = Row(comparison.b.model_dump(mode="json"), None).model
    about = f"{comparison.a.evaluation.task} · {model} · {documents}{how}"
    say(console, about)
    console.print()
    _show_scores(console, comparison)
    console.print()
    _show_costs(console, comparison)
    console.print()
    for line in _notes(comparison, margin):
        note(console, line)


def _show_scores(console: "Console", comparison: "Comparison") -> None:
    from harness.cli.columns import Column, left, show
    from harness.cli.summary import difference
    from harness.reports.numbers import TERMINAL

    scores = replace(TERMINAL, decimals=4)  # two runs may differ in the last documents of thousands
    headings = ("A", "B", "B - A [95 %]", "p", "p, Holm", "up", "down", "visible", "no loss")
    names, rows = list[str](), list[tuple[str, ...]]()
    base_values = {(score.task, score.metric, score.filter): score.value for score in comparison.a.scores}
    for score in comparison.scores:
        base, change = base_values.get((score.task, score.metric, score.filter)), score.vs_baseline
        if change is None or base is None or score.value is None:
            continue
        names.append(_name(comparison, score))
        cells = (
            scores.score(base),
            scores.score(score.value),
            difference(score),
            _p(change.p),
            _p(change.p_adjusted),
            TERMINAL.unknown if change.gained is None else str(change.gained),
            TERMINAL.unknown if change.lost is None else str(change.lost),
            TERMINAL.score(change.detectable),
            {True: "yes", False: "open", None: TERMINAL.unknown}[change.noninferior],
        )
        rows.append(cells)
    numbers = [Column(heading, [row[place] for row in rows]) for place, heading in enumerate(headings)]
    if numbers[3].cells == numbers[4].cells:  # a single task: nothing to adjust for
        del numbers[4]
    longest = max((len(word) for name in names for word in name.split()), default=0)  # a name stays whole
    show(console, [left("score", names, longest)], numbers)


def _name(comparison: "Comparison", score: "Score") -> str:
    """A score's name, with its task where that is not what was run, and its filter where it has one."""
    task = "" if score.task == comparison.b.evaluation.task else f"{score.task} "
    return f"{task}{score.metric}" + ("" if score.filter == "none" else f" {score.filter}")


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value >= 0.001 else "<0.001"


def _show_costs(console: "Console", comparison: "Comparison") -> None:
    from harness.cli.columns import Column, left, show
    from harness.cli.summary import interval_of
    from harness.results.baseline import COSTS, TOTALS

    places = {cost.name: place for place, cost in enumerate((*COSTS, *TOTALS))}
    ratios = comparison.baseline.ratios.items()
    ordered = sorted(ratios, key=lambda ratio: places.get(ratio[0], len(places)))
    titles = [_titled(name) for name, _ in ordered]
    lead = [left("cost", [title for title, _ in titles], 16), left("kind", [kind for _, kind in titles])]
    show(console, lead, [Column("B / A", [interval_of(info) for _, info in ordered])])


def _titled(name: str) -> tuple[str, str]:
    """A ratio's title and kind."""
    from harness.results.baseline import COSTS, TOTALS

    titles: dict[str, tuple[str, str]] = {cost.name: (cost.title, cost.kind) for cost in (*COSTS, *TOTALS)}
    return titles.get(name, (name.replace(":", " on "), "modelled"))


def _notes(comparison: "Comparison", margin: float) -> list[str]:
    from harness.results.baseline import same_length

    notes = [
        "p: two-sided, exact McNemar for right-or-wrong scores, else t; of each score alone, as its interval",
        "up, down: documents that scored higher, lower",
        "visible: smallest difference that this test finds in four of five tries with so many documents",
        f"no loss: yes where a loss of {margin:g} or more is excluded at 95 %, open where it is not",
        "measured times are compared within one run of `harness run` alone, where methods take turns",
    ]
    changes = [(score, score.vs_baseline) for score in comparison.scores]
    if any(change and change.p_adjusted != change.p for _, change in changes):
        notes.insert(1, "p, Holm: the same, adjusted for the number of tasks with that score")
    names: dict[str, list[str]] = {}
    for score, change in changes:
        if change and change.reason:
            names.setdefault(change.reason, []).append(_name(comparison, score))
    notes += [f"{', '.join(of_reason)}: {reason}" for reason, of_reason in names.items()]
    names.clear()
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
