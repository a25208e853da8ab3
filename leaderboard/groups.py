"""What the runs of a group share, and by which names two groups differ."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from harness.reports.columns import at
from harness.reports.numbers import PAGE
from harness.reports.rows import Record, Row

_LONGEST = 200  # characters of a text in a cell
_SUITE: Final = ("model", "number format", "attention implementation", "machine", "way of scoring", "batch size")
"""What the tasks of one score over several have in common, besides the settings that are shown."""


def short(text: str) -> str:
    """A text of bounded length."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def heads(rows: Sequence[Row]) -> list[Row]:
    """A row of each group, in the order of model, task and hardware."""
    return sorted({row.group: row for row in reversed(rows)}.values(), key=_place)


def _place(row: Row) -> tuple[str, ...]:
    record = row.record
    return record["model"]["name"], record["evaluation"]["task"], row.hardware, row.settings, row.group


def described(head: Row, members: Sequence[Row]) -> dict[str, Any]:
    """A group for the page's script.

    ``slug`` names it in addresses. ``terms`` holds a digest of all that had to agree, by readers' names: groups differ
    in those whose digests do. ``suite`` is the same for the tasks that one score can be made over. ``is_share``: its
    main score lies between 0 and 1, and more is better, so that it may stand in a mean with those of other tasks.
    """
    record = head.record
    return {
        "slug": _digest(head.group),
        "model": short(head.model),
        "task": short(record["evaluation"]["task"]),
        "hardware": short(head.hardware),
        "settings": short(head.settings),
        "model_facts": [short(fact) for fact in model_facts(record)],
        "machine_facts": [short(fact) for fact in machine_facts(record)],
        "weights": short(record["model"]["fingerprint"]),
        "documents": head.score["n"] if head.score else 0,
        "terms": {name: _digest(json.dumps(term, sort_keys=True)) for name, term in head.terms.items()},
        "suite": _digest(json.dumps([head.settings, *(head.terms[name] for name in _SUITE)], sort_keys=True)),
        "is_share": all(_is_share(row) for row in members),
    }


def _is_share(row: Row) -> bool:
    score = row.score
    if score is None or score["higher_is_better"] is not True:
        return False
    return score["value"] is not None and 0 <= score["value"] <= 1


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def model_facts(record: Record) -> list[str]:
    """How large a model is, as far as the record says it."""
    count = record["model"]["parameters"]
    return [f"{parameters(count)} parameters"] if count else []


def parameters(count: int) -> str:
    """A number of parameters as papers write it, 135 M or 8.03 B."""
    return f"{count / 1e9:.3g} B" if count >= 1e9 else f"{count / 1e6:.3g} M"


def machine_facts(record: Record) -> list[str]:
    """What tells a processor from others of its name, and how fast the machine read memory; no host's of a device."""
    machine = record["environment"]
    processor = (machine["device"].startswith("cpu") and machine.get("processor")) or {}
    design = [
        f"{part} {processor[part]}" for part in ("family", "model", "stepping") if processor.get(part) is not None
    ]
    sets = ", ".join(processor.get("instruction_sets") or ())
    used = machine.get("instructions")
    bandwidth = at(record, "time/roofline/this-host/bandwidth")
    return [
        *([" ".join(design)] if design else []),
        *([sets] if sets else []),
        *([f"torch used {used}"] if used else []),
        *([f"read memory at {PAGE.quantity(bandwidth, 'B/s')}"] if bandwidth else []),
    ]


def software(record: Record) -> str:
    """The versions that made a run."""
    versions = {"harness": "efficiency-harness", "lm-eval": "lm_eval", "torch": "torch", "transformers": "transformers"}
    known = record["environment"]["versions"]
    return ", ".join(f"{name} {known[package]}" for name, package in versions.items() if package in known)
