"""The summary of a job: for every task, the scores against dense and the costs against dense, each with its interval.

Written for somebody who has read nothing else: every column names its kind of number, and notes below the tables say
what a reader of the numbers alone would miss.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from harness.cli.columns import Column, left, show
from harness.cli.display import note, say, stdout
from harness.cli.graph import graph_sentences, show_graphs
from harness.cli.said import Said, once
from harness.cli.throughput import sentences, show_throughput
from harness.measure.accelerators import HOST
from harness.reports.columns import BY_KEY, Ratio, ratio, wrote_as_much
from harness.reports.notes import notes, own_is_ref
from harness.reports.numbers import TERMINAL
from harness.reports.rows import Row
from harness.reports.rows import rows as as_rows

if TYPE_CHECKING:
    from harness.results.baseline import RatioInfo
    from harness.results.costs import Ideal
    from harness.results.record import RunRecord
    from harness.results.scores import Score

_SHORT: Final = {
    "flops": "FLOPs",
    "flops_total": "FLOPs,\ntotals",
    "ideal_ref": "idealized\ntime",
    "ideal_ref_total": "idealized,\ntotals",
    "ideal_own": "idealized,\nown kernels",
    "ideal_requests": "idealized,\nsame requests",
    "latency": "latency",
    "tpot": "time per\ntoken",
    "peak_memory": "peak\nmemory",
    "energy": "energy",
    "energy_estimated": "energy",
}
"""The ratios that the summary shows, where there are any; a record has more."""
_OFF: Final = 0.15
"""Error of what is added to the layers, for other requests, above which it is said: that of a fair profile's times."""


def scores(records: "Sequence[RunRecord]") -> None:
    """The scores of each task, while costs are still to come."""
    console = stdout()
    for of_task in _by_task(records):
        _head(console, of_task)
        _show_scores(console, of_task)
    console.print()


def results(records: "Sequence[RunRecord]", folder: Path, *, as_json: bool, after_scores: bool = False) -> None:
    """All records as JSON, or the tables of each task, and below them what a reader must know, each thing said once.

    Args:
        after_scores: whether the scores have been printed already.
    """
    if as_json:
        print(json.dumps([record.model_dump(mode="json") for record in records], indent=2))  # noqa: T201
        return
    if not records:  # another process of the launch has them
        return
    console = stdout()
    tasks = _by_task(records)
    rows = [as_rows(record.model_dump(mode="json") for record in of_task) for of_task in tasks]
    paired = list(zip(tasks, rows, strict=True))
    for of_task, of_records in paired:
        has_costs = any(record.baseline for record in of_task)
        if has_costs or not after_scores:
            _head(console, of_task)
        if not after_scores:
            _show_scores(console, of_task)
        if has_costs:
            if not after_scores:
                console.print()
            _show_costs(console, of_records)
        show_throughput(console, of_task)
        show_graphs(console, of_task)
    console.print()
    labels = [record.method.label for record in records]
    of_methods = [each for task in paired for each in _of_methods(*task)]
    said = [
        *(each for task in paired for each in _of_tables(*task)),
        *sorted(of_methods, key=lambda each: labels.index(each.method or "")),
        *(each for of_task in tasks for each in _of_numbers(of_task)),
    ]
    for sentence in once(said, [record.evaluation.task for (record, *_) in tasks]):
        note(console, sentence)
    console.print()
    say(console, f"records in {folder}/ · `harness show ID` for one of them")


def _by_task(records: "Sequence[RunRecord]") -> "list[list[RunRecord]]":
    tasks = dict.fromkeys(record.evaluation.task for record in records)
    return [[record for record in records if record.evaluation.task == task] for task in tasks]


def _head(console: Console, of_task: "Sequence[RunRecord]") -> None:
    console.print()
    say(console, _title(of_task[0]), style="bold")


def _title(record: "RunRecord") -> str:
    scored = f"{max(score.n for score in record.scores)} documents" if record.scores else "no metrics"
    how = f" · {record.evaluation.scoring}" if record.evaluation.scoring else ""
    model = Row(record.model_dump(mode="json"), None).model
    return f"{record.evaluation.task} · {model} · {scored}{how}"


def _show_scores(console: Console, records: "Sequence[RunRecord]") -> None:
    """A row for every method and metric."""
    lines: list[tuple[str, ...]] = []
    for record in records:
        for index, score in enumerate(_headline(record)):
            first = index == 0
            method = (record.id[:6], record.method.label) if first else ("", "")
            scored = (_metric(score, record), _value(score), difference(score))
            ran = (_changed(record), _depths(record)) if first else ("", "")
            lines.append((*method, *scored, *ran))
    cells: list[tuple[str, ...]] = list(zip(*lines, strict=True)) or [()] * 7  # [columns][rows]
    # a name stays whole, and its arrow beside it
    longest = max(map(len, re.findall(r"\S+(?: [↑↓])?", "\n".join(["metric", *cells[2]]))))
    lead = [left("id", cells[0]), left("method", cells[1], 12), left("metric", cells[2], longest)]
    headings = ("score\n[95 %]", "against dense\n[95 %]", "answers\nchanged", "depth\nrun")
    numbers = [Column(heading, texts) for heading, texts in zip(headings, cells[3:], strict=True)]
    show(console, lead, numbers, gap=1)


def _show_costs(console: Console, rows: "Sequence[Row]") -> None:
    """A row for every method: its costs over dense's; then what dense against itself gives."""
    compared = [row for row in rows if row.record["baseline"] is not None]
    columns = [BY_KEY[key] for key in _SHORT]
    columns = [column for column in columns if any(ratio(row.record, row.dense, column) for row in compared)]
    if all(wrote_as_much(row.record) for row in compared):
        columns = [column for column in columns if not column.of_totals]
    if all(map(own_is_ref, compared)):
        columns = [column for column in columns if column.key != "ideal_own"]
    measured = (row.record["baseline"]["noise"] for row in compared)
    noise: dict[str, Any] = next(filter(None, measured), {})
    methods, savings = [row.record["method"]["label"] for row in compared], [row.saving for row in compared]
    numbers = []
    for column in columns:
        cells = [interval_of(ratio(row.record, row.dense, column)) for row in compared]
        again = [interval_of(Ratio(**noise[column.key])) if column.key in noise else ""] if noise else []
        numbers.append(Column(f"{_SHORT[column.key]}\n{column.kind}", [*cells, *again]))
    last = ["noise: dense again"] if noise else []
    lead = [left("cost, dense = 1.00x", [*methods, *last], 18), left("saving", [*savings, *("" for _ in last)])]
    show(console, lead, numbers, dim=[len(compared)], gap=1)


def difference(score: "Score") -> str:
    """A score's difference to dense with its interval."""
    change = score.vs_baseline
    if change is None:
        return ""
    bounds = TERMINAL.interval(change.low, change.high, "difference")
    return f"{TERMINAL.difference(change.difference)} {bounds}".strip()


def interval_of(info: "RatioInfo | Ratio | None") -> str:
    """A ratio with its interval, where it has one of any width."""
    if info is None:
        return TERMINAL.unknown
    is_point = TERMINAL.ratio(info.low) == TERMINAL.ratio(info.high)
    bounds = "" if is_point else TERMINAL.interval(info.low, info.high)
    return f"{TERMINAL.ratio(info.value)} {bounds}".strip()


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


def _of_tables(records: "Sequence[RunRecord]", rows: Sequence[Row]) -> Iterator[Said]:
    """What the columns of one task's tables are, and why none of its rows is to be ranked."""
    task = records[0].evaluation.task
    yield Said(
        "depth: share of the layers that ran, prefill/decode where these differ; FLOPs: counted from what ran", task
    )
    if any(record.time and record.time.ideal for record in records):
        yield Said("idealized time: the work that ran, at what a layer costs on this host alone at batch size 1", task)
    for reason in _of_all(rows):
        yield Said(f"{reason}: for trying out, not for ranking", task)


def _of_all(rows: Sequence[Row]) -> list[str]:
    """Reasons that keep every row apart."""
    return [reason for reason in rows[0].apart if all(reason in row.apart for row in rows)]


def _of_methods(records: "Sequence[RunRecord]", rows: Sequence[Row]) -> Iterator[Said]:
    """What must be known of single rows of a task."""
    shared = _of_all(rows)
    for record, row in zip(records, rows, strict=True):
        reasons = [reason for reason in row.apart if reason not in shared]
        for sentence in (
            *reasons,
            *notes(row, TERMINAL),
            *_doubts(record, row),
            *sentences(record),
            *graph_sentences(record),
        ):
            yield Said(sentence, record.evaluation.task, record.method.label)


def _of_numbers(records: "Sequence[RunRecord]") -> Iterator[Said]:
    """What is missing from one task's tables, and how its numbers came about."""
    task = records[0].evaluation.task
    more = sum(score.task == task for score in records[0].scores) - 2
    sentences = [f"{more} more score{'s' if more > 1 else ''} in each record: `harness show {records[0].id[:6]}`"] * (
        more > 0
    )
    sentences += [*_without_interval(records), *_about_timing(records)]
    sentences += [warning for record in records for warning in record.warnings[:3]]
    yield from (Said(sentence, task) for sentence in sentences)


def _without_interval(records: "Sequence[RunRecord]") -> Iterator[str]:
    """What in the tables has no interval, by the reason, and of which methods where it is not all of them."""
    methods: dict[str, dict[str, list[str]]] = {}  # labels by reason and by what has no interval
    compared = [record for record in records if record.baseline is not None]
    for record in records:
        changes = [(score.metric, score.vs_baseline) for score in _headline(record)]
        reasons = {name: change.reason for name, change in changes if change is not None and change.low is None}
        ratios = record.baseline.ratios if record.baseline else {}
        reasons |= {_SHORT[name].replace("\n", " "): info.reason for name, info in ratios.items() if name in _SHORT}
        for name, reason in reasons.items():
            if reason:
                methods.setdefault(reason, {}).setdefault(name, []).append(record.method.label)
    for reason, names in methods.items():
        named = (
            name if len(labels) == len(compared) else f"{name} of {' and '.join(labels)}"
            for name, labels in names.items()
        )
        yield f"no interval of {', '.join(named)}: {reason}"


def _doubts(record: "RunRecord", row: Row) -> Iterator[str]:
    """What a reader of one method's row must know besides, though it may be ranked."""
    if (routes := record.routes) is not None and routes.distinct > 1:
        read = routes.union_prefill if routes.union_decode is None else routes.union_decode
        union = "" if read is None else f"; a batch has to read {read:.0%} of the layers"
        yield f"{routes.distinct} paths, the full one for {routes.identity:.0%}{union}"
    if (drafts := record.drafts) is not None:
        yield (
            f"{drafts.tokens_per_verification:.2f} tokens a verification, {drafts.passes_per_token:.2f} passes over "
            f"the weights a token; {drafts.acceptance[0]:.0%} of first guesses were right"
        )
    yield from _reached(record)
    ideal = record.time.ideal if record.time else None
    if ideal is not None and ideal.added is not None and (off := ideal.added.error) is not None and off > _OFF:
        yield f"what it adds to the layers is priced {off:.0%} off for requests that its prices were not fitted on"
    if ideal is not None and ideal.own_label == "poor" and not own_is_ref(row):
        yield "the cost profile of its own kernels is poor: do not rank by its idealized time with them"
    for score in _headline(record)[:1]:
        change = score.vs_baseline
        if change is not None and change.low is not None and change.high is not None and change.low < 0 < change.high:
            least = TERMINAL.score(change.detectable)
            shown = f"of {change.n} documents the test ({change.test}) finds {least} in four of five tries"
            power = change.reason if change.detectable is None else shown
            yield f"its {score.metric} is not shown to differ from dense" + (f"; {power}" if power else "")


def _reached(record: "RunRecord") -> Iterator[str]:
    """How much of its device a run used; of a processor, whose caches hold small models, it says little."""
    bound = record.time.roofline.get(HOST) if record.time else None
    if bound is None or bound.share is None or record.environment.device.startswith("cpu"):
        return
    of_what = f"{bound.share:.0%} of the roofline ({bound.share_of} time, {record.environment.device_name})"
    if bound.launch_bound:
        yield f"launch-bound: {of_what}: single requests take the time of launching work, not of doing it"
    else:
        yield f"reached {of_what}"


def _about_timing(records: "Sequence[RunRecord]") -> Iterator[str]:
    """How far the times can be trusted, said once."""
    times = [record.time for record in records if record.time is not None]
    labels = {time.ideal.label: time.ideal for time in times if time.ideal is not None}
    for label in ("poor", "fair"):
        if label in labels:
            ideal = labels[label]
            yield (
                f"the cost profile of idealized time is {label}: off by {ideal.fit_error:.0%} where fitted and "
                f"{ideal.held_out_error:.0%} elsewhere{_of_speedups(ideal)}; {_mend(ideal)}"
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


def _mend(ideal: "Ideal") -> str:
    """What would make the profile better: a poor one with small errors was timed on shorter prompts than these."""
    from harness.measure.profile import FAIR

    errors = (ideal.fit_error, ideal.held_out_error, ideal.speedup_error, ideal.speedup_worst)
    is_close = all(error is not None and error <= limit for error, limit in zip(errors, FAIR, strict=True))
    if ideal.label == "poor" and is_close:
        return "the prompts are longer than those that its time was enough for: --cost_budget SECONDS for more"
    return "`harness profile --again` on a quiet machine"


def _of_speedups(ideal: "Ideal") -> str:
    """How far the profile's speed-ups are off, where the record tells."""
    if ideal.speedup_error is None or ideal.speedup_worst is None:
        return ""
    return f", its speed-ups by {ideal.speedup_error:.0%} ({ideal.speedup_worst:.0%} at most)"
