"""What ``harness analyze attention`` found, as a person reads it."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Console

from harness.cli.columns import Column, left, show
from harness.cli.display import note, say, stdout
from harness.reports.numbers import TERMINAL

Lines = Sequence[Mapping[str, Any]]


def show_all(analysis: Mapping[str, Lines], *, sinks: int, window: int) -> None:
    """A table for each part."""
    console = stdout()
    for number, (name, lines) in enumerate(analysis.items()):
        if number:
            console.print()
        if name == "layers":
            _layers(console, lines, sinks, window)
        elif name == "split":
            _split(console, lines)
        elif name == "length":
            _length(console, lines)
        else:
            _kept(console, lines)


def _layers(console: Console, lines: Lines, sinks: int, window: int) -> None:
    say(console, "attention by layer", style="bold")
    by_layer = [list(heads) for _, heads in groupby(lines, key=itemgetter("layer"))]
    entropies = [_mean(heads, "entropy") for heads in by_layer]
    columns = [
        Column("entropy\nnats", [f"{entropy:.2f}" for entropy in entropies]),
        Column(
            "of\nuniform's",
            [f"{entropy / heads[0]['uniform']:.0%}" for entropy, heads in zip(entropies, by_layer, strict=True)],
        ),
    ]
    for name, title in (("sinks", f"first {sinks}"), ("recent", f"last {window}")):
        columns.append(Column(f"{title}\nkeys", [f"{_mean(heads, name):.0%}" for heads in by_layer]))
        columns.append(Column("lowest to\nhighest head", [_range(heads, name) for heads in by_layer]))
    show(console, [left("layer", [str(heads[0]["layer"]) for heads in by_layer])], columns)
    note(console, "means over heads and over the queries of each text's second half")
    note(console, "uniform's: the entropy if every key that can be read were read alike")


def _mean(heads: Lines, name: str) -> float:
    return float(sum(head[name] for head in heads) / len(heads))


def _range(heads: Lines, name: str) -> str:
    values = [head[name] for head in heads]
    return f"{min(values):.0%} to {max(values):.0%}"


def _split(console: Console, lines: Lines) -> None:
    first = lines[0]
    heads, workers = first["kv_heads"], first["workers"]
    say(console, f"a decode step's attention: {heads} key-value heads on {workers} threads", style="bold")
    numbers = [
        Column("torch's\nms", [f"{line['sdpa']:.3f}" for line in lines]),
        Column("whole heads\nms", [f"{line['whole']:.3f}" for line in lines]),
        Column("idle", [f"{line['idle_whole']:.0%}" for line in lines]),
        Column(f"tiles of {first['tile']}\nms", [f"{line['split']:.3f}" for line in lines]),
        Column("idle", [f"{line['idle_split']:.0%}" for line in lines]),
        Column("whole heads\nover tiles", [f"{line['gain']:.2f}x" for line in lines]),
    ]
    show(console, [left("keys", [f"{line['keys']:,}" for line in lines])], numbers)
    note(console, "measured on this machine's processor, one layer, medians over rounds; idle: counted")
    largest = max(line["difference"] for line in lines)
    note(console, f"the split is exact: it differs from whole attention in float64 by {largest:.1g} at most (float32)")


def _length(console: Console, lines: Lines) -> None:
    say(console, "cost over dense's by length of the context", style="bold")
    groups = [list(rows) for _, rows in groupby(lines, key=itemgetter("method", "cost"))]
    lead = [
        left("method", [rows[0]["method"] for rows in groups], 16),
        left("cost", [rows[0]["cost"] for rows in groups]),
    ]
    numbers = [
        Column(
            f"{rows[0]['length']:,}\ntokens",
            [f"{TERMINAL.ratio(row['value'])} {_bounds(row)}".strip() for row in rows],
        )
        for rows in _transposed(groups)
    ]
    crossing = Column("costs less\nfrom", [_crossing(rows) for rows in groups])
    show(console, lead, [crossing, *numbers], gap=1)
    note(console, "times are measured, in turns with dense: medians over rounds with their 95 % intervals")
    note(console, "costs less from: the shortest of these lengths from which on every interval lies below 1 (CAB)")
    note(console, "KV cache: counted, the largest that the context and what was written after it left")


def _transposed(groups: Sequence[Lines]) -> Iterable[Lines]:
    return zip(*groups, strict=True)


def _bounds(row: Mapping[str, Any]) -> str:
    return "" if row["low"] == row["high"] else TERMINAL.interval(row["low"], row["high"])


def _crossing(rows: Lines) -> str:
    shortest = rows[0]["efficiency_length"]
    return "nowhere" if shortest is None else f"{shortest:,}"


def _kept(console: Console, lines: Lines) -> None:
    say(console, "quality against kept cache", style="bold")
    lead = [
        left("task", [line["task"] for line in lines], 14),
        left("method", [line["method"] for line in lines], 16),
    ]
    bounds = [TERMINAL.interval(line["low"], line["high"], "difference") for line in lines]
    changes = [TERMINAL.difference(line["difference"]) for line in lines]
    numbers = [
        Column("KV\nkept", [f"{line['kept']:.1%}" for line in lines]),
        Column(
            "pairs\nmultiplied", [TERMINAL.unknown if not line["pairs"] else f"{line['pairs']:.1%}" for line in lines]
        ),
        Column("score", [TERMINAL.score(line["score"]) for line in lines]),
        Column("against dense\n[95 %]", [" ".join(pair).strip() for pair in zip(changes, bounds, strict=True)]),
    ]
    show(console, lead, numbers, gap=1)
    note(console, "KV kept: the largest cache of a sequence over dense's for the same tokens, counted")
