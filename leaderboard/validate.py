"""The check of a folder of results: every rule on every run, no run twice, and no published number changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.leaderboard.case import Case, Finding
from harness.leaderboard.packing import is_board, strays
from harness.leaderboard.pairs import against_dense, renamed_dense, same_conditions
from harness.leaderboard.rerun import Rerun, rerun
from harness.leaderboard.results import Result, load_all
from harness.leaderboard.rules import findings, judged, read
from harness.reports.columns import BY_KEY, at, ratio
from harness.reports.numbers import PAGE
from harness.reports.rows import Row, difference, rows


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        table: Markdown for the reviewer: the new runs among those of their group.
        reruns: what came of running documents again, where that was asked for.
    """

    runs: int
    findings: list[Finding]
    table: str
    reruns: tuple[Rerun, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing keeps the results out."""
        return all(finding.severity != "error" for finding in self.findings)


def validate(root: Path, published: Path | None = None, rerun_documents: int = 0) -> Verdict:
    """Check every result under a folder; against those of ``published``, none may be gone or changed.

    Args:
        rerun_documents: how many documents of each run are run again; beside ``published``, of each new run.

    Raises:
        ResultError: no such folder.
    """
    results, refused = load_all(root)
    before = {result.record["id"]: result for result in load_all(published)[0]} if published else {}
    folders = [*refused, *(result.folder for result in results)]
    board = published is not None or is_board(root, folders)
    verdict = [Finding(folder, "error", "schema", reason) for folder, reason in refused.items()]
    if board and root not in folders:
        verdict += [Finding(path, "error", "files", reason) for path, reason in strays(root, set(folders))]
    cases: dict[str, Case] = {}
    for result in results:
        renewed = published is not None and result.record["id"] not in before
        try:
            case = read(result, published=board, renewed=renewed)
        except Exception as error:
            reason = str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {str(error)!a:.200}"
            verdict.append(Finding(result.folder, "error", "files", reason))
            continue
        cases[result.record["id"]] = case
        verdict += judged(case)
    verdict += _pairs(cases)
    verdict += _unchanged(before, {result.record["id"]: result for result in results}, root)
    table = _table(results, before)
    refused_folders = {finding.folder for finding in verdict if finding.severity == "error"}
    asked = [case for run_id, case in cases.items() if rerun_documents and run_id not in before]
    reruns = tuple(rerun(case, rerun_documents) for case in asked if case.result.folder not in refused_folders)
    verdict += [Finding(each.folder, "error", "rerun", text) for each in reruns for text in each.problems]
    return Verdict(len(results), verdict, table, reruns)


def _pairs(cases: Mapping[str, Case]) -> Iterator[Finding]:
    """The dense run of each run is among the results, and what is said of the two is that of their files."""
    for case in cases.values():
        folder, dense_id = case.result.folder, at(case.record, "baseline/run_id")
        if dense_id is None:
            continue
        dense = cases.get(dense_id)
        if dense is None:
            yield Finding(folder, "error", "baseline", f"its dense run {dense_id} is not among the results")
            continue
        for rule in (same_conditions, renamed_dense, against_dense):
            yield from findings(folder, rule.__name__, "error", partial(rule, case, dense))


def _unchanged(before: Mapping[str, Result], now: Mapping[str, Result], root: Path) -> Iterator[Finding]:
    """What is published stays as it is: no run goes, no number changes."""
    for run_id, old in before.items():
        if run_id not in now:
            yield Finding(root / run_id, "error", "published", f"run {run_id} was published and is gone")
            continue
        for path, was, is_now in _changes(old.record, now[run_id].record):
            text = f"a published number changed: {path} was {was!r:.60} and is {is_now!r:.60}"
            yield Finding(now[run_id].folder, "error", "published", text)


def _changes(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ, as (path, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _changes(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(*pair, f"{path}.{number}")
    elif old != new:
        yield path, old, new


def _table(results: list[Result], before: Mapping[str, Result]) -> str:
    """The groups that have new runs, as Markdown; submitted text cannot break out of its cell."""
    table = rows(result.record for result in results)
    touched = {row.group for row in table if row.id not in before}
    lines = []
    for group in dict.fromkeys(row.group for row in table if row.group in touched):
        members = [row for row in table if row.group == group]
        first = members[0]
        model, task = first.record["model"]["name"], first.record["evaluation"]["task"]
        title = f"{model}, {task}, {first.hardware}, {first.settings}"
        lines += [
            f"### {_cell(title)}",
            "",
            "| | method | score | against dense | FLOPs | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row, new=row.id not in before) for row in sorted(members, key=lambda row: not row.is_dense)]
        lines.append("")
    return "\n".join(lines) or "No new runs.\n"


def _line(row: Row, *, new: bool) -> str:
    change, flops = difference(row.score), ratio(row.record, row.dense, BY_KEY["flops"])
    against = PAGE.difference(change["difference"]) if change else ""
    bounds = PAGE.interval(change["low"], change["high"], "difference") if change else ""
    cells = [
        "**new**" if new else "",
        _cell(row.record["method"]["label"]),
        PAGE.score(row.score["value"] if row.score else None),
        f"{against} {bounds}".strip(),
        "" if flops is None else PAGE.ratio(flops.value),
        _cell("; ".join(row.apart)),
    ]
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text as Markdown that shows it: no markup, no mention, no link."""
    shown = printable(text[:120])
    return "`" + shown.replace("`", "'").replace("|", "¦") + "`" if shown else ""
