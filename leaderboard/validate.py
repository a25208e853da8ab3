"""The check of a folder of results: every rule on every run, no run twice, and no published number changed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.text import printable
from harness.leaderboard.captured import graph_beside_dense
from harness.leaderboard.case import Case, Finding
from harness.leaderboard.counterparts import dense_work, same_questions
from harness.leaderboard.packing import is_board, strays
from harness.leaderboard.pairs import against_dense, renamed_dense, same_conditions
from harness.leaderboard.rerun import Rerun, rerun
from harness.leaderboard.results import PACKED_COSTS, PACKED_SAMPLES, Result, load_all
from harness.leaderboard.rules import findings, judged, read
from harness.reports.columns import BY_KEY, at, ratio
from harness.reports.numbers import PAGE
from harness.reports.rows import Row, difference, rows
from harness.results.store import MANIFEST

_FILES = (MANIFEST, PACKED_SAMPLES, PACKED_COSTS)
"""Files of a published run beside its record, which stay as they are to the byte."""


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
    reruns: list[Rerun] = []
    for family in _families(results):
        dense: Case | None = None
        for result in family:
            is_new = result.record["id"] not in before
            renewed = (published is not None and is_new) or bool(result.record["sources"])
            case = _read(result, published=board, renewed=renewed)
            if isinstance(case, Finding):
                verdict.append(case)
                continue
            of_run = [*judged(case), *_pair(case, dense)]
            if rerun_documents and is_new and all(finding.severity != "error" for finding in of_run):
                reruns.append(rerun(case, rerun_documents))
                of_run += [Finding(result.folder, "error", "rerun", text) for text in reruns[-1].problems]
            verdict += of_run
            dense = dense or case
    verdict += _unchanged(before, {result.record["id"]: result for result in results}, root)
    return Verdict(len(results), verdict, _safe_table(results, before), tuple(reruns))


def _families(results: Sequence[Result]) -> list[list[Result]]:
    """The results with those of one dense run together, it first: so no more than two are in memory at once."""
    families: dict[str, list[Result]] = {}
    for result in results:
        families.setdefault(at(result.record, "baseline/run_id") or result.record["id"], []).append(result)
    return [sorted(family, key=lambda each: each.record["id"] != first) for first, family in families.items()]


def _read(result: Result, *, published: bool, renewed: bool) -> Case | Finding:
    try:
        return read(result, published=published, renewed=renewed)
    except HarnessError as error:
        return Finding(result.folder, "error", "files", str(error))
    except Exception as error:
        return Finding(result.folder, "error", "files", f"{type(error).__name__}: {str(error)!a:.200}")


def _pair(case: Case, dense: Case | None) -> Iterator[Finding]:
    """The dense run of a run is among the results, and what is said of the two is that of their files."""
    folder, dense_id = case.result.folder, at(case.record, "baseline/run_id")
    if dense_id is None:
        return
    if dense is None or dense.record["id"] != dense_id:
        yield Finding(folder, "error", "baseline", f"its dense run {dense_id} is not among the results")
        return
    for rule in (same_conditions, same_questions, dense_work, renamed_dense, against_dense, graph_beside_dense):
        yield from findings(folder, rule.__name__, "error", partial(rule, case, dense))


def _safe_table(results: list[Result], before: Mapping[str, Result]) -> str:
    """The table, or why there is none: a refused run may have what no table can show."""
    try:
        return _table(results, before)
    except Exception as error:
        return f"No table can be made of these runs: {type(error).__name__}.\n"


def _unchanged(before: Mapping[str, Result], now: Mapping[str, Result], root: Path) -> Iterator[Finding]:
    """What is published stays as it is: no run goes, no number changes."""
    for run_id, old in before.items():
        if run_id not in now:
            yield Finding(root / run_id, "error", "published", f"run {run_id} was published and is gone")
            continue
        changed = [name for name in _FILES if _bytes(old.folder / name) != _bytes(now[run_id].folder / name)]
        if changed:
            text = f"a published file changed: {', '.join(changed)}"
            yield Finding(now[run_id].folder, "error", "published", text)
        for path, was, is_now in _changes(old.record, now[run_id].record):
            text = f"a published number changed: {path} was {was!r:.60} and is {is_now!r:.60}"
            yield Finding(now[run_id].folder, "error", "published", text)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


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
