"""What a person sees of a search: what would be searched, and what came of it."""

import json
from typing import TYPE_CHECKING, Any

from harness.cli import display
from harness.cli.columns import Column, left, show
from harness.core.text import duration

if TYPE_CHECKING:
    from harness.sweep.tuning.documents import Dealt
    from harness.sweep.tuning.metrics import Number
    from harness.sweep.tuning.tuning import Chosen, Tuned, Tuning

_FAILURES = 10
_WAYS = {"search": "the search", "random": "random draws", "uniform": "all layers alike"}


def plan(tuning: "Tuning", *, as_json: bool) -> None:
    """How large the space is, how much of it is measured, and on which documents."""
    space, (choosing, reporting) = tuning.space, tuning.documents.counts
    seconds = tuning.expected_s
    if as_json:
        plain: dict[str, Any] = {
            "settings": [list(part.choices[1:]) for part in space.parts],
            "candidates": space.count,
            "evaluations": tuning.evaluations,
            "most_runs": tuning.most_runs,
            "validation_documents": choosing,
            "test_documents": reporting,
            "expected_s": seconds,
        }
        print(json.dumps(plain, indent=2))  # noqa: T201
        return
    console = display.stdout()
    for part in space.parts:
        where = f", in each of {space.layers} layers" if part.by_layer else ""
        display.say(console, f"{' | '.join(part.choices[1:])}, or without it{where}")
    display.note(
        console, f"{space.count:,} candidates, of which {tuning.evaluations} are measured by each way to choose"
    )
    display.note(console, f"chosen on {choosing} documents, reported on {reporting} others")
    known = f", in about {duration(seconds)} by earlier records" if seconds else ""
    display.note(console, f"at most {tuning.most_runs} runs to choose{known}, then those of the fronts to report")


def results(tuned: "Tuned", documents: "Dealt", *, as_json: bool) -> None:
    """The fronts on the documents that did not choose them, and how the ways to choose compare."""
    if as_json:
        print(json.dumps(_plain(tuned, documents), indent=2))  # noqa: T201
        return
    console = display.stdout()
    choosing, reporting = documents.counts
    costs = tuned.metrics.costs
    if tuned.chosen:
        display.say(console, f"chosen on {choosing} documents, reported on {reporting} others", style="bold")
        labels = [each.record.method.label if each.record else each.text for each in tuned.chosen]
        runs = [each.record.id if each.record else "-" for each in tuned.chosen]
        lead = [left("run", runs), left("method", labels, 16)]
        rest = [left("by", [",".join(each.ways) for each in tuned.chosen], 8)]
        rest += [
            Column(f"{cost.name}\nchoosing", [f"{each.validation[place]:.3f}" for each in tuned.chosen])
            for place, cost in enumerate(costs)
        ]
        rest += [
            Column(f"{cost.name}\nreported [95 %]", [_number(each, place) for each in tuned.chosen])
            for place, cost in enumerate(costs)
        ]
        rest += [left("saving", [each.saving for each in tuned.chosen])]
        show(console, lead, rest)
    else:
        display.say(console, "no candidate was measured within the budgets", style="bold")
    console.print()
    for sentence in _sentences(tuned):
        display.note(console, sentence)


def _number(chosen: "Chosen", place: int) -> str:
    if isinstance(chosen.test, str):
        return "-"
    number = chosen.test[place]
    bounds = "" if number.low is None or number.high is None else f" [{number.low:.3f}, {number.high:.3f}]"
    return f"{number.value:.3f}{bounds}"


def _sentences(tuned: "Tuned") -> list[str]:
    """How far the numbers carry, and how the ways to choose compare."""
    costs = tuned.metrics.costs
    point = ", ".join(f"{cost.name} {most:.3g}" for cost, most in zip(costs, tuned.reference, strict=False))
    sentences = [f"hypervolume within {point}, on the documents that chose, and of the front on the others:"]
    sentences += [
        f"{_WAYS[way.name]}: {way.validation:.4f}, {way.test:.4f}, by {way.evaluations} evaluations"
        for way in tuned.ways
    ]
    told = [
        f"{cost.name} {'not known' if each is None else f'{each:.2f}'}"
        for cost, each in zip(costs, tuned.correlations, strict=True)
    ]
    if tuned.predicted:
        sentences.append(
            f"rank correlation of what was predicted with what was measured afterwards, of {tuned.predicted} "
            f"candidates: {', '.join(told)}"
        )
    names = {cost.name: cost.title for cost in costs}
    words = [f"{name}: {title}" for name, title in names.items() if name != title]
    sentences.append("; ".join(words) + "; costs are times dense's, a loss is in the score's own unit")
    beyond = [each.text for each in tuned.chosen if each.beyond(tuned.metrics.limits)]
    if beyond:
        sentences.append(f"beyond a budget on the documents to report on: {', '.join(beyond)}")
    reasons: dict[str, list[str]] = {}
    lacking = {each.text: each.test for each in tuned.chosen if isinstance(each.test, str)}
    for text, reason in {**tuned.failures, **lacking}.items():
        reasons.setdefault(reason, []).append(text)
    for reason, texts in list(reasons.items())[:_FAILURES]:
        more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
        sentences.append(f"not measured, {texts[0]}{more}: {reason}")
    if tuned.chosen:
        sentences.append("`harness show RUN` has the command of each")
    return sentences


def _plain(tuned: "Tuned", documents: "Dealt") -> dict[str, Any]:
    costs = [cost.name for cost in tuned.metrics.costs]
    choosing, reporting = documents.counts
    return {
        "objectives": costs[: tuned.metrics.objectives],
        "budgets": {c: most for c, most in zip(costs, tuned.metrics.limits, strict=True) if most < float("inf")},
        "validation_documents": choosing,
        "test_documents": reporting,
        "reference": list(tuned.reference),
        "ways": {
            way.name: {
                "evaluations": way.evaluations,
                "hypervolume_validation": way.validation,
                "hypervolume_test": way.test,
            }
            for way in tuned.ways
        },
        "rank_correlation": {
            "candidates": tuned.predicted,
            **dict(zip(costs, tuned.correlations, strict=True)),
        },
        "front": [_plain_chosen(each, costs) for each in tuned.chosen],
        "failures": tuned.failures,
    }


def _plain_chosen(chosen: "Chosen", costs: list[str]) -> dict[str, Any]:
    record = chosen.record
    return {
        "methods": chosen.text,
        "by": list(chosen.ways),
        "validation": dict(zip(costs, chosen.validation, strict=True)),
        "test": chosen.test
        if isinstance(chosen.test, str)
        else dict(zip(costs, map(_bounds, chosen.test), strict=True)),
        "saving": chosen.saving,
        "run": record and record.id,
        "command": record and record.command,
    }


def _bounds(number: "Number") -> dict[str, Any]:
    return vars(number)
