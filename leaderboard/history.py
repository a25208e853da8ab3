"""A method over versions: runs of one setting on one question, made again with other code, oldest first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.leaderboard.facets import version
from harness.leaderboard.groups import short
from harness.reports.columns import BY_KEY, Ratio, ratio
from harness.reports.rows import Row

_MOST = 200  # runs that are worth reading


@dataclass(frozen=True)
class Entry:
    """One of the runs; ``changes`` says what is new since the one before, as far as the records tell."""

    row: Row
    version: str
    changes: str
    flops: Ratio | None
    latency: Ratio | None


@dataclass(frozen=True)
class History:
    """A setting of a method in one group."""

    label: str
    group: str
    entries: list[Entry]


def histories(rows: Iterable[Row]) -> list[History]:
    """Of every setting that was run more than once in a group."""
    of_setting: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        of_setting.setdefault((row.record["method"]["label"], row.group), []).append(row)
    told, count = [], 0
    for (label, _), members in sorted(of_setting.items()):
        if len(members) > 1 and (count := count + len(members)) <= _MOST:
            first = members[0]
            title = f"{first.record['model']['name']} · {first.record['evaluation']['task']} · {first.hardware}"
            told.append(History(label, short(f"{title} · {first.settings}"), list(_entries(members))))
    return told


def _entries(members: Sequence[Row]) -> Iterator[Entry]:
    before = None
    for row in sorted(members, key=lambda row: (row.record["started"], row.id)):
        costs = (ratio(row.record, row.dense, BY_KEY[key]) for key in ("flops", "latency"))
        yield Entry(row, version(row), _changes(before, row) if before else "", *costs)
        before = row


def _changes(before: Row, row: Row) -> str:
    """What differs between two runs of one setting: packages, then the method's own code or parameters."""
    old, new = (each.record["environment"]["versions"] for each in (before, row))
    words = [
        f"{name} {old.get(name, 'absent')} → {new.get(name, 'absent')}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]
    if before.record["method"]["fingerprint"] != row.record["method"]["fingerprint"]:
        words.append("the method's code or parameters")
    return ", ".join(words) or "nothing that the records tell"
