"""What a person sees of a recommendation: the methods to take, how surely, and what is not known."""

import json
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.cli import display
from harness.cli.columns import Column, left
from harness.cli.columns import show as show_table
from harness.core.errors import HarnessError
from harness.core.text import duration

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cli.recommending import Asked
    from harness.reports.recommend import Advice, Judged, Tie

_LISTED = 12  # names in one sentence


def show(asked: "Asked", advice: "Sequence[Advice]") -> None:
    """Every group of comparable runs: never ranked across hardware, number formats or documents."""
    console = display.stdout()
    for number, each in enumerate(advice):
        if number:
            console.print()
        _show(console, asked, each)
    for reason in asked.unreadable:
        display.note(console, f"left out: {reason}")


def _show(console: "Console", asked: "Asked", advice: "Advice") -> None:
    dense = advice.dense
    within = ", ".join(map(str, advice.budgets))
    display.say(console, f"{dense.model} on {dense.record['evaluation']['task']}, within {within}", style="bold")
    documents = dense.score["n"] if dense.score else 0
    limited = ", a part of the task's" if dense.record["evaluation"]["limited"] else ""
    display.say(console, f"{dense.hardware} · {dense.settings} · {documents} documents{limited}")
    console.print()
    if advice.named:
        _table(console, advice)
    else:
        display.say(console, "no method is known to keep within it", style="bold")
    console.print()
    for sentence in _sentences(advice):
        display.note(console, sentence)
    for judged in advice.named:
        _command(console, f"{_label(judged)} again:", asked.reproduction(judged))
    for judged in advice.unknown:
        display.note(console, f"not known of {_label(judged)}: {judged.reason}")
        _command(console, "what would tell:", asked.measurement(judged))
    untried = _untried(advice)
    if untried:
        more = f" and {len(untried) - _LISTED} more" if len(untried) > _LISTED else ""
        display.note(console, f"never run here: {', '.join(untried[:_LISTED])}{more}{_pace(advice)}")
        _command(console, "such as:", asked.beside(advice.dense, untried[0]))


def _command(console: "Console", lead: str, command: str) -> None:
    """A command in one line, so that it can be copied."""
    display.note(console, lead)
    console.print(display.plain(f"    {command}"), soft_wrap=True)


def _table(console: "Console", advice: "Advice") -> None:
    from harness.cli.summary import interval_of
    from harness.reports.numbers import TERMINAL
    from harness.reports.rows import difference

    named = advice.named
    scores = [each.row.score or {} for each in named]
    changes = [difference(each.row.score) or {} for each in named]
    bounds = [TERMINAL.interval(each.get("low"), each.get("high"), "difference") for each in changes]
    shown = [f"{TERMINAL.difference(c.get('difference'))} {b}".strip() for c, b in zip(changes, bounds, strict=True)]
    metric = scores[0].get("metric", "score")
    costs = [
        Column(f"{budget.name}\n× dense [95 %]", [interval_of(each.verdicts[place].against) for each in named])
        for place, budget in enumerate(advice.budgets)
    ]
    rest = [
        Column(str(metric), [TERMINAL.score(score.get("value")) for score in scores]),
        Column("difference to dense\n[95 %]", shown),
        *costs,
        left("saving", [each.row.saving for each in named]),
        left("run", [each.row.id for each in named]),
    ]
    show_table(console, [left("method", [_label(each) for each in named], 12)], rest)


def _sentences(advice: "Advice") -> Iterator[str]:
    """How surely they keep the budgets, which are alike, and what was not named."""
    for judged in advice.named:
        for verdict in judged.verdicts:
            if verdict.reaches_beyond and verdict.interval is not None:
                yield f"{_label(judged)}: its {verdict.budget.name} may be {verdict.interval[1]:.2f}, beyond the budget"
    yield from map(_tie, advice.ties)
    if advice.behind:
        yield f"within it too, and no better in anything: {_labels(advice.behind)}"
    if not advice.named and (near := advice.nearest) is not None:
        yield f"the nearest is {_label(near)}, {near.verdicts[0].budget.name} {near.points[0].cost:.2f}"
    reasons: dict[str, list[Judged]] = {}
    for judged in advice.others:
        if judged.state != "unknown":
            reasons.setdefault(judged.reason, []).append(judged)
    for reason, of_reason in reasons.items():
        yield f"not named, {reason}: {_labels(of_reason)}"


def _tie(tie: "Tie") -> str:
    names = f"{tie.first.record['method']['label']} and {tie.second.record['method']['label']}"
    if tie.change is None:
        return f"{names} are not known to differ in score: {tie.reason or 'they cannot be compared'}"
    change = tie.change
    if change.low is None or change.high is None:
        return f"{names} are not known to differ in score: {change.reason}"
    seen = f"{change.difference:+.4f} [{change.low:+.4f}, {change.high:+.4f}] on {change.n} documents"
    costs = f", nor in {', '.join(tie.costs)}" if tie.costs else ""
    needed = f"; about {tie.documents:,} would tell a difference as large" if tie.documents else ""
    return f"{names} cannot be told apart in score{costs}: {seen}{needed}"


def _label(judged: "Judged") -> str:
    return str(judged.row.record["method"]["label"])


def _labels(judged: "Sequence[Judged]") -> str:
    return ", ".join(map(_label, judged))


def _untried(advice: "Advice") -> list[str]:
    """Methods of which no setting was run in the group, and which have one without asking."""
    from harness.contract import registry

    every = [advice.dense, *(each.row for each in (*advice.named, *advice.behind, *advice.others))]
    tried = {name for row in every for name in row.record["method"]["name"].split("+")}
    return sorted(name for name in registry.names() if "/" not in name and name not in tried and _is_complete(name))


def _is_complete(name: str) -> bool:
    """Whether a method runs as it is, without an argument that only the user knows."""
    from harness.contract.stack import parse

    try:
        parse(name)
    except HarnessError:
        return False
    return True


def _pace(advice: "Advice") -> str:
    """How long a run of the group took."""
    every = [advice.dense, *(each.row for each in (*advice.named, *advice.behind, *advice.others))]
    return f"; scores took about {duration(median(row.record['duration_s'] for row in every))} a run here"


def print_json(asked: "Asked", advice: "Sequence[Advice]") -> None:
    """The same as JSON."""
    print(json.dumps([_plain(asked, each) for each in advice], indent=2))  # noqa: T201


def _plain(asked: "Asked", advice: "Advice") -> dict[str, Any]:
    dense = advice.dense
    return {
        "model": dense.model,
        "task": dense.record["evaluation"]["task"],
        "hardware": dense.hardware,
        "settings": dense.settings,
        "limited": dense.record["evaluation"]["limited"],
        "budgets": {budget.name: budget.most for budget in advice.budgets},
        "named": [_plain_run(each) | {"command": asked.reproduction(each)} for each in advice.named],
        "behind": [_plain_run(each) for each in advice.behind],
        "not_named": [_plain_run(each) for each in advice.others if each.state != "unknown"],
        "unknown": [_plain_run(each) | {"command": asked.measurement(each)} for each in advice.unknown],
        "ties": [_plain_tie(tie) for tie in advice.ties],
        "never_run": _untried(advice),
    }


def _plain_run(judged: "Judged") -> dict[str, Any]:
    from harness.reports.rows import difference

    row, score = judged.row, judged.row.score or {}
    return {
        "run": row.id,
        "method": _label(judged),
        "saving": row.saving,
        "score": {name: score.get(name) for name in ("metric", "value", "low", "high")},
        "difference": difference(row.score),
        "costs": {each.budget.name: each.against and vars(each.against) for each in judged.verdicts},
        "may_be_beyond": [each.budget.name for each in judged.verdicts if each.reaches_beyond],
        "state": judged.state,
        "reason": judged.reason or None,
    }


def _plain_tie(tie: "Tie") -> dict[str, Any]:
    return {
        "methods": [row.record["method"]["label"] for row in (tie.first, tie.second)],
        "runs": [tie.first.id, tie.second.id],
        "difference": tie.change and tie.change.model_dump(mode="json"),
        "reason": tie.reason or None,
        "documents_needed": tie.documents,
        "costs_alike": list(tie.costs),
    }
