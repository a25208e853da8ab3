"""The summary of a job: for every task, the scores against dense and the costs against dense, each with its interval.

Written for somebody who has read nothing else: every column names its kind of number, and notes below the tables say
what a reader of the numbers alone would miss.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from harness.cli.display import plain, stdout
from harness.reports.numbers import TERMINAL
from harness.reports.rows import Row

if TYPE_CHECKING:
    from harness.results.costs import Ideal, RatioInfo
    from harness.results.record import RunRecord
    from harness.results.scores import Score

_SHORT: Final = {
    "flops": "FLOPs",
    "ideal_ref": "idealized time",
    "ideal_own": "idealized, own kernels",
    "ideal_requests": "idealized, same requests",
    "latency": "latency",
    "tpot": "time per token",
    "peak_memory": "peak memory",
    "energy": "energy",
    "energy_estimated": "energy",
}
"""The ratios that the summary shows, where there are any; a record has more."""


def results(records: "Sequence[RunRecord]", folder: Path, *, as_json: bool) -> None:
    """All records as JSON, or the tables of each task and what a reader must know about them."""
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))  # noqa: T201
        return
    if not records:  # another process of the launch has them
        return
    console = stdout()
    for task in dict.fromkeys(record.evaluation.task for record in records):
        rows = [record for record in records if record.evaluation.task == task]
        console.print()
        console.print(_title(rows[0]))
        console.print(_score_table(rows))
        if any(record.baseline for record in rows):
            console.print()
            console.print(_cost_table(rows))
        console.print()
        for note in _notes(rows):
            console.print(plain(f"· {note}"), style="dim")
    console.print()
    console.print(plain(f"records in {folder}/ · `harness show ID` for one of them"), style="dim")


def _title(record: "RunRecord") -> Text:
    scored = f"{max(score.n for score in record.scores)} documents" if record.scores else "no metrics"
    title = plain(f"{record.evaluation.task} · {record.model.name} · {scored}")
    title.stylize("bold")
    return title


def _score_table(records: "Sequence[RunRecord]") -> Table:
    """A row for every method and metric."""
    table = _table()
    table.add_column("id", no_wrap=True)
    table.add_column("method", overflow="fold", min_width=12)
    table.add_column("metric", overflow="fold", min_width=11)
    for heading in ("score\n[95 %]", "against dense\n[95 %]", "answers\nchanged", "depth\nrun"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        for index, score in enumerate(_headline(record)):
            first = index == 0
            method = (record.id[:6], record.method.label) if first else ("", "")
            cells = (_metric(score, record), _value(score), difference(score))
            ran = (_changed(record), _depths(record)) if first else ("", "")
            table.add_row(*map(plain, (*method, *cells, *ran)))
    return table


def _cost_table(records: "Sequence[RunRecord]") -> Table:
    """A row for every method: its costs over dense's; then what dense against itself gives."""
    from harness.results.costs import COSTS

    kinds = {cost.name: cost.kind for cost in COSTS}
    compared = [record for record in records if record.baseline is not None]
    shown = [name for name in _SHORT if any(record.baseline and name in record.baseline.ratios for record in compared)]
    if all(map(_own_is_ref, compared)):
        shown = [name for name in shown if name != "ideal_own"]
    table = _table()
    table.add_column("cost, dense = 1.00x", overflow="fold", min_width=18)
    table.add_column("saving", no_wrap=True)
    for name in shown:
        table.add_column(f"{_SHORT[name]}\n{kinds[name]}", justify="right", overflow="fold")
    for record in compared:
        assert record.baseline is not None
        cells = [plain(ratio(record.baseline.ratios.get(name))) for name in shown]
        table.add_row(plain(record.method.label), plain(record.method.savings), *cells)
    noise = next((record.baseline.noise for record in compared if record.baseline and record.baseline.noise), {})
    if noise:
        cells = [plain(ratio(noise[name]) if name in noise else "") for name in shown]
        table.add_row(plain("noise: dense again"), "", *cells, style="dim")
    return table


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))


def difference(score: "Score") -> str:
    """A score's difference to dense with its interval."""
    change = score.vs_baseline
    if change is None:
        return ""
    bounds = TERMINAL.interval(change.low, change.high, "difference")
    return f"{TERMINAL.difference(change.difference)} {bounds}".strip()


def ratio(info: "RatioInfo | None") -> str:
    """A ratio with its interval, where it has one of any width."""
    if info is None:
        return TERMINAL.unknown
    is_point = TERMINAL.ratio(info.low) == TERMINAL.ratio(info.high)
    bounds = "" if is_point else TERMINAL.interval(info.low, info.high)
    return f"{TERMINAL.ratio(info.value)} {bounds}".strip()


def _own_is_ref(record: "RunRecord") -> bool:
    """Whether the idealized time is the same with the method's own kernels as with dense's, or is not known."""
    ratios = record.baseline.ratios if record.baseline else {}
    own, reference = ratios.get("ideal_own"), ratios.get("ideal_ref")
    return own is None or (reference is not None and abs(own.value - reference.value) < 5e-4)


def _headline(record: "RunRecord") -> "list[Score]":
    """The first scores of the task or group; of a group without its own, the first score of each task in it."""
    of_task = [score for score in record.scores if score.task == record.evaluation.task]
    first = {score.task: score for score in reversed(record.scores)}
    return of_task[:2] or list(reversed(first.values()))


def _metric(score: "Score", record: "RunRecord") -> str:
    task = "" if score.task == record.evaluation.task else f"{score.task} "
    filtered = "" if score.filter == "none" else f" {score.filter}"
    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
    return f"{task}{score.metric}{arrow}{filtered}"


def _value(score: "Score") -> str:
    return f"{TERMINAL.score(score.value)} {TERMINAL.interval(score.low, score.high, 'score')}".strip()


def _changed(record: "RunRecord") -> str:
    changed = record.baseline.answers_changed if record.baseline else None
    return "" if changed is None else f"{changed:.1%}"


def _depths(record: "RunRecord") -> str:
    depths = [record.trace.mean_depth_prefill, record.trace.mean_depth_decode]
    return "/".join(dict.fromkeys(f"{depth:.0%}" for depth in depths if depth is not None))


def _notes(records: "Sequence[RunRecord]") -> Iterator[str]:
    """What a reader of the numbers alone would miss."""
    yield "depth: share of the layers that ran, prefill/decode where these differ; FLOPs: counted from what ran"
    if any(record.time and record.time.ideal for record in records):
        yield "idealized time: the work that ran, at what a layer costs on this host alone at batch size 1"
    apart = {record.id: Row(record.model_dump(mode="json"), None).apart for record in records}
    of_all = [reason for reason in apart[records[0].id] if all(reason in reasons for reasons in apart.values())]
    yield from (f"{reason}: for trying out, not for ranking" for reason in of_all)
    for record in records:
        reasons = [reason for reason in apart[record.id] if reason not in of_all]
        yield from (f"{record.method.label}: {doubt}" for doubt in (*reasons, *_doubts(record)))
    more = sum(score.task == records[0].evaluation.task for score in records[0].scores) - 2
    if more > 0:
        yield f"{more} more scores in each record: `harness show {records[0].id[:6]}`"
    yield from _without_interval(records)
    yield from _about_timing(records)
    yield from dict.fromkeys(warning for record in records for warning in record.warnings[:3])


def _without_interval(records: "Sequence[RunRecord]") -> Iterator[str]:
    """What in the tables has no interval, by the reason."""
    names: dict[str, dict[str, None]] = {}
    for record in records:
        for score in _headline(record):
            change = score.vs_baseline
            if change is not None and change.low is None and change.reason:
                names.setdefault(change.reason, {})[score.metric] = None
        for name, info in (record.baseline.ratios if record.baseline else {}).items():
            if info.reason and name in _SHORT:
                names.setdefault(info.reason, {})[_SHORT[name].replace("\n", " ")] = None
    yield from (f"no interval of {', '.join(of_reason)}: {reason}" for reason, of_reason in names.items())


def _doubts(record: "RunRecord") -> Iterator[str]:
    """What a reader of one method's row must know, though it may be ranked."""
    if record.method.savings == "simulated":
        yield "its saving is simulated: the arithmetic on paper, not the running code, does less"
    if (routes := record.routes) is not None and routes.distinct > 1:
        read = routes.union_prefill if routes.union_decode is None else routes.union_decode
        union = "" if read is None else f"; a batch has to read {read:.0%} of the layers"
        yield f"{routes.distinct} paths, the full one for {routes.identity:.0%}{union}"
    ideal = record.time.ideal if record.time else None
    if ideal is not None and ideal.own_label == "poor" and not _own_is_ref(record):
        yield "the cost profile of its own kernels is poor: do not rank by its idealized time with them"
    for score in _headline(record)[:1]:
        change = score.vs_baseline
        if change is not None and change.low is not None and change.high is not None and change.low < 0 < change.high:
            least = TERMINAL.score(change.detectable)
            shown = f"of {change.n} documents the test ({change.test}) finds {least} in four of five tries"
            power = change.reason if change.detectable is None else shown
            yield f"its {score.metric} is not shown to differ from dense" + (f"; {power}" if power else "")
    length = record.baseline.output_tokens if record.baseline else None
    if length is not None and not 0.9 <= length <= 1.1:
        yield f"it generates {length:.2f} times as many tokens as dense; latency is measured at equal length"


def _about_timing(records: "Sequence[RunRecord]") -> Iterator[str]:
    """How far the times can be trusted, said once."""
    times = [record.time for record in records if record.time is not None]
    labels = {time.ideal.label: time.ideal for time in times if time.ideal is not None}
    for label in ("poor", "fair"):
        if label in labels:
            ideal = labels[label]
            yield (
                f"the cost profile of idealized time is {label}: off by {ideal.fit_error:.0%} where fitted and "
                f"{ideal.held_out_error:.0%} elsewhere{_of_speedups(ideal)}; "
                "`harness profile --again` on a quiet machine"
            )
    doubts = dict.fromkeys(doubt for time in times if time.latency for doubt in time.latency.doubts)
    yield from (f"latency: {doubt}" for doubt in list(doubts)[:3])
    for time in times:
        yield from (f"roofline of {name}: {doubt}" for name, bound in time.roofline.items() for doubt in bound.doubts)
    for settings in [time.settings for time in times if time.settings][:1]:
        yield (
            f"latency and memory: {settings.prompts} of the task's requests, {settings.rounds} times each, one at a "
            "time, dense and the method taking turns"
        )
    energy = next((record.energy for record in records if record.energy is not None), None)
    if energy is not None and energy.measured_j is None:
        yield f"energy: {energy.note}"


def _of_speedups(ideal: "Ideal") -> str:
    """How far the profile's speed-ups are off, where the record tells."""
    if ideal.speedup_error is None or ideal.speedup_worst is None:
        return ""
    return f", its speed-ups by {ideal.speedup_error:.0%} ({ideal.speedup_worst:.0%} at most)"
