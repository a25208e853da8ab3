"""Runs of a results folder as a list shows them, and those of them that were asked for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from harness.core.errors import StoreError
from harness.results.failure import Failure, failure_in
from harness.results.model_names import distinct_names
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store


@dataclass(frozen=True)
class Listed:
    """One run, finished or not.

    Attributes:
        row: its cells by their headings.
        terms: all that it goes by, under the same headings: a method also by its bare name, for example.
    """

    row: Mapping[str, str]
    terms: Mapping[str, frozenset[str]]


def runs(store: Store) -> list[Listed]:
    """All runs of a store, the newest first; one that failed, or cannot be read, has the reason as its state."""
    records: dict[str, RunRecord] = {}
    states: dict[str, str] = {}
    failures: dict[str, Failure | None] = {}
    folders = store.folders()
    for folder in folders:
        failures[folder.id] = None if folder.finished else failure_in(folder.path)
        states[folder.id] = _state(folder, failures[folder.id])
        if folder.finished:
            try:
                records[folder.id] = folder.record()
            except StoreError as error:
                states[folder.id] = f"unreadable: {error}"
    names = distinct_names(record.model.model_dump(mode="json") for record in records.values())
    return [
        _listed(folder, record, states[folder.id], names)
        if (record := records.get(folder.id))
        else _without_record(folder, failures[folder.id], states[folder.id])
        for folder in folders
    ]


def _state(folder: RunFolder, failure: Failure | None) -> str:
    """How far a run is, as its folder tells."""
    if folder.finished:
        return "finished"
    if folder.busy:
        return "running"
    if failure is None:
        return "unfinished"
    instead = f" (run {failure.instead})" if failure.instead else ""
    return f"failed: {failure.reason}{instead}"


def _without_record(folder: RunFolder, failure: Failure | None, state: str) -> Listed:
    """A run that is unfinished, or cannot be read; one that failed says what it was to be."""
    row = {"id": folder.id, **dict.fromkeys(("name", "method", "model", "task", "score"), ""), "state": state}
    terms = {"folder": frozenset({folder.id, folder.path.name})}
    if failure is not None:
        row |= {"method": failure.method, "model": failure.model, "task": failure.task}
        terms |= {heading: frozenset({row[heading]}) for heading in ("method", "model", "task")}
        terms["method"] |= {failure.method.partition(":")[0]}
    return Listed(row, terms)


def _listed(folder: RunFolder, record: RunRecord, state: str, names: Mapping[str, str]) -> Listed:
    row = {"id": folder.id, **dict.fromkeys(("name", "method", "model", "task", "score"), ""), "state": state}
    best = next(iter(record.scores), None)
    row |= {
        "name": record.name or "",
        "method": record.method.label,
        "model": names[record.model.fingerprint],
        "task": record.evaluation.task,
        "score": f"{best.metric} {best.value:.4f}" if best and best.value is not None else "",
    }
    models = {row["model"], record.model.name, record.model.pretrained}
    terms = {
        "folder": {folder.id, folder.path.name},
        "name": {row["name"]},
        "method": {row["method"], record.method.name, *record.method.name.split("+")},
        "model": models,
        "task": {row["task"]},
    }
    return Listed(row, {heading: frozenset(of) for heading, of in terms.items()})


def fits(run: Listed, pattern: str | None, wanted: Mapping[str, Iterable[str] | None]) -> bool:
    """Whether a run fits a glob by anything that it goes by, and under each heading one of the globs that are given."""
    every = frozenset().union(*run.terms.values())
    return (pattern is None or _any(every, [pattern])) and all(
        _any(run.terms.get(heading, frozenset()), globs) for heading, globs in wanted.items() if globs
    )


def _any(terms: Iterable[str], globs: Iterable[str]) -> bool:
    return any(term and (term == glob or fnmatchcase(term, glob)) for term in terms for glob in globs)
