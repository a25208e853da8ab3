"""The tables behind the figures: which numbers of which runs each figure shows. None where there is nothing to show."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.reports import figures
from harness.reports.columns import BY_KEY, Ratio, at, columns, on_own_tokens, ratio
from harness.reports.figures import Plot
from harness.reports.rows import Row, difference, score_interval
from harness.reports.strength import by_strength
from harness.results.equal_tokens import stated
from harness.results.samples import SampleLine

if TYPE_CHECKING:
    from pandas import DataFrame

Samples = Mapping[str, Sequence[SampleLine]]


def plots(rows: Sequence[Row], samples: Samples, cost: str) -> Iterator[Plot]:
    """Every figure that the runs of one group have numbers for; ``samples`` are the documents by run id."""
    candidates = (
        ("pareto", "Quality against cost", pareto_data(rows, cost), figures.pareto),
        ("breakdown", "Where the FLOPs go", parts_data(rows, "flops/parts", "flops"), figures.breakdown),
        ("breakdown_time", "Where the time goes", parts_data(rows, "time/ideal/parts", "ideal_ref"), figures.breakdown),
        ("phases", "Prefill and decode", phases_data(rows), figures.phases),
        ("speedup", "Measured against modelled", speedup_data(rows), figures.speedups),
    )
    for name, title, data, draw in candidates:
        if data is not None and len(data):
            yield Plot(name, title, data, draw)
    for data in strength_data(rows):
        name = re.sub(r"\W+", "-", data["name"].iloc[0].lower())[:60]
        yield Plot(f"strength_{name}", f"Quality against strength, {data['name'].iloc[0][:40]}", data, figures.strength)
    for row in rows:
        data = depth_data(row, samples)
        if data is not None:
            title = f"Depth by difficulty, {row.record['method']['label'][:40]}"
            yield Plot(f"depth_{row.id}", title, data, figures.depths)


def pareto_data(rows: Sequence[Row], cost: str) -> "DataFrame | None":
    """Runs that may be ranked, with their score and a cost's ratio to dense."""
    import pandas as pd

    known = {column.key: column for column in columns(row.record for row in rows)}
    column = known.get(cost, BY_KEY["flops"])
    lines = []
    for row in rows:
        against = ratio(row.record, row.dense, column)
        if row.score is None or row.apart or (against is None and not row.is_dense):
            continue
        low, high = score_interval(row.score) or (None, None)
        lines.append(
            {
                "id": row.id,
                "method": row.record["method"]["label"],
                "family": row.record["method"]["family"],
                "cost": against.value if against else 1.0,
                "cost_low": against.low if against else 1.0,  # dense over itself is exact
                "cost_high": against.high if against else 1.0,
                "score": row.score["value"],
                "score_low": low,
                "score_high": high,
            }
        )
    if len(lines) < 2:
        return None
    head = next(row.score for row in rows if row.score)
    data = pd.DataFrame(lines)
    data.attrs = {
        "cost": f"{column.title} ({column.kind})",
        "kind": column.kind,
        "metric": head["metric"],
        "less": head["higher_is_better"] is False,
    }
    return data


def strength_data(rows: Sequence[Row]) -> "Iterator[DataFrame]":
    """For each method its settings by their strength, with the difference to dense."""
    import pandas as pd

    for settings in by_strength(rows):
        lines = []
        for x, row in settings.points:
            change = difference(row.score) or {}
            lines.append(
                {
                    "name": row.record["method"]["name"],
                    "family": row.record["method"]["family"],
                    "method": row.record["method"]["label"],
                    "parameter": settings.axis,
                    "strength": x,
                    "difference": change["difference"],
                    "low": change["low"],
                    "high": change["high"],
                }
            )
        yield pd.DataFrame(lines)


def parts_data(rows: Sequence[Row], parts: str, cost: str) -> "DataFrame | None":
    """A cost's components over dense's, on the run's own tokens where it read or wrote others than dense."""
    import pandas as pd

    dense = next((row for row in rows if row.is_dense and at(row.record, parts)), None)
    if dense is None:
        return None
    column, lines = BY_KEY[cost], []
    for row in rows:
        of, path = (row, column.same_tokens) if on_own_tokens(row.record) else (dense, column.path)
        amounts, whole = at(row.record, parts), at(of.record, path)
        if amounts and whole:
            shares = {name: part / whole for name, part in amounts.items()}
            lines.append({"method": row.record["method"]["label"]} | shares)
    data = pd.DataFrame(lines).fillna(0.0)
    data = data[["method", *(name for name in data.columns if name != "method" and data[name].any())]]
    data.attrs["unit"] = "share of dense's total"
    return data


def phases_data(rows: Sequence[Row]) -> "DataFrame | None":
    """Speed of prefill and of decoding over dense's in the same turns: to the first token, then per token.

    A text that is only scored is prefill as a whole.
    """
    import pandas as pd

    lines = []
    for row in rows:
        is_scored = at(row.record, "time/latency/kind") == "score"
        keys = {"prefill": "latency" if is_scored else "ttft", "decode": "tpot"}
        against = {phase: ratio(row.record, row.dense, BY_KEY[key]) for phase, key in keys.items()}
        if not row.is_dense and any(against.values()):
            speeds = {phase: 1 / each.value if each else None for phase, each in against.items()}
            lines.append({"method": row.record["method"]["label"], **speeds})
    return pd.DataFrame(lines).astype({"prefill": float, "decode": float}) if lines else None


def speedup_data(rows: Sequence[Row]) -> "DataFrame | None":
    """Speed-ups, dense over method, by latency and by idealized time: of the same requests where the record has that.

    Requests are charged for dense layers: of a method with modules of its own, the documents' time with those is taken.
    """
    import pandas as pd

    lines = []
    for row in rows:
        measured = ratio(row.record, row.dense, BY_KEY["latency"])
        modelled = _modelled(row)
        if measured is None or modelled is None or row.is_dense:
            continue
        lines.append(
            {
                "method": row.record["method"]["label"],
                "family": row.record["method"]["family"],
                "modelled": 1 / modelled.value,
                "measured": 1 / measured.value,
                "measured_low": 1 / measured.high if measured.high else None,
                "measured_high": 1 / measured.low if measured.low else None,
            }
        )
    return pd.DataFrame(lines) if lines else None


def _modelled(row: Row) -> Ratio | None:
    """Idealized time over dense's, of what is nearest to the measured requests."""
    profile, own = (at(row.record, f"time/ideal/{name}") for name in ("profile", "own_profile"))
    names = ["ideal_own", "ideal_ref"]
    if (own is None or own == profile) and "ideal_requests" in stated(row.record):
        names.insert(0, "ideal_requests")
    return next(filter(None, (ratio(row.record, row.dense, BY_KEY[name]) for name in names)), None)


def depth_data(row: Row, samples: Samples) -> "DataFrame | None":
    """Depth of a run's documents, and whether dense scored them; None where all go equally deep."""
    import pandas as pd

    if row.dense is None or row.score is None or row.is_dense:
        return None
    name = f"{row.score['metric']},{row.score['filter']}"
    dense = {(each["task"], each["doc_id"]): each["scores"].get(name) for each in samples.get(row.dense["id"], ())}
    lines = []
    for sample in samples.get(row.id, ()):
        score, depth = dense.get((sample["task"], sample["doc_id"])), sample["depth"]
        if isinstance(score, int | float) and depth is not None:
            lines.append({"document": sample["doc_id"], "depth": depth, "dense_right": score > 0.5})
    data = pd.DataFrame(lines)
    return data if len(data) and data["depth"].nunique() > 1 else None
