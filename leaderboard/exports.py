"""What other programs read: an index of runs, a feed of new ones, scores in the shared every_eval_ever schema."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal
from xml.sax.saxutils import escape, quoteattr

from pydantic import BaseModel, Field

from harness.core.rounding import Rounding
from harness.core.text import printable
from harness.leaderboard.facets import version
from harness.reports.columns import columns, ratio, value
from harness.reports.notes import notes
from harness.reports.numbers import PAGE
from harness.reports.rows import Record, Row, difference
from harness.results.saving import Saving, saving

_FEED = 50  # newest runs in the feed
EVERY_EVAL_EVER = "0.2.1"


class Bounds(BaseModel):
    """A number with its 95 % interval; null bounds where it has none."""

    value: float
    low: float | None = None
    high: float | None = None


class Entry(BaseModel):
    """One run.

    Attributes:
        page, data: of the run, relative to the index.
        model: a name that no other model of the board has; ``pretrained`` is what was given, ``fingerprint`` is
            what tells models apart, ``license`` null where no card says it.
        harness: the version that made the run.
        score: of the run's own task or group; null where there is none.
        difference: score minus dense's on the same documents.
        costs: values in SI base units, per document where the cost is a sum over documents.
        ratios: costs over dense's on the same documents; over dense's on the same tokens where the run wrote more or
            fewer than dense, with its totals under names that end in "_total".
        savings: what this run saved; "none" of a method that saves elsewhere has its reason among the ``notes``.
        apart: why the run is never ranked; empty for one that may be.
        notes: what must be read with the ratios.
    """

    id: str
    page: str
    data: str
    started: datetime
    method: str
    label: str
    family: str
    params: list[dict[str, Any]]
    exact: bool
    savings: Saving
    model: str
    pretrained: str
    fingerprint: str
    parameters: int
    license: str | None
    task: str
    hardware: str
    harness: str
    settings: str
    metric: str | None
    higher_is_better: bool | None
    documents: int
    score: float | None
    stderr: float | None
    difference: Bounds | None
    costs: dict[str, float]
    ratios: dict[str, Bounds]
    apart: list[str]
    notes: list[str] = Field(default=[])


class Index(BaseModel):
    """The runs of a board, the newest first."""

    schema_version: Literal[1] = 1
    generator: Literal["harness"] = "harness"
    runs: list[Entry] = Field(default_factory=list)


def index(rows: Iterable[Row]) -> Index:
    """A light row for every run."""
    return Index(runs=[_entry(row) for row in rows])


def _entry(row: Row) -> Entry:
    record, score, change = row.record, row.score or {}, difference(row.score)
    method = record["method"]
    costs = columns([record])
    ratios = {cost.key: against for cost in costs if (against := ratio(record, row.dense, cost)) is not None}
    return Entry(
        id=row.id,
        page=f"runs/{row.id}.html",
        data=f"data/{row.id}/",
        started=record["started"],
        method=method["name"],
        label=method["label"],
        family=method["family"],
        params=method["params"],
        exact=method["exact"],
        savings=saving(record),
        model=record["model"]["name"],
        pretrained=record["model"]["pretrained"],
        fingerprint=record["model"]["fingerprint"],
        parameters=record["model"]["parameters"],
        license=record["model"].get("license"),
        task=record["evaluation"]["task"],
        hardware=row.hardware,
        harness=version(row),
        settings=row.settings,
        metric=score.get("metric"),
        higher_is_better=score.get("higher_is_better"),
        documents=score.get("n", 0),
        score=score.get("value"),
        stderr=score.get("stderr"),
        difference=Bounds(value=change["difference"], low=change["low"], high=change["high"]) if change else None,
        costs={cost.key: known for cost in costs if (known := value(record, cost)) is not None},
        ratios={key: Bounds(value=each.value, low=each.low, high=each.high) for key, each in ratios.items()},
        apart=row.apart,
        notes=notes(row, PAGE),
    )


def feed(rows: Sequence[Row], url: str | None) -> str:
    """The newest runs as an Atom feed; links are absolute if the site's address is known."""
    base = f"{url.rstrip('/')}/" if url else ""
    newest = sorted(rows, key=lambda row: row.record["started"], reverse=True)[:_FEED]
    updated = newest[0].record["started"] if newest else "1970-01-01T00:00:00Z"
    entries = "".join(_feed_entry(row, base) for row in newest)
    itself = f'<link rel="self" href={quoteattr(base + "feed.xml")}/>' if url else ""
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        f"<title>harness: new runs</title><id>urn:harness:board</id><updated>{escape(updated)}</updated>"
        f"<author><name>harness</name></author>{itself}<link href={quoteattr(base + 'index.html')}/>{entries}</feed>\n"
    )


def _feed_entry(row: Row, base: str) -> str:
    record = row.record
    change = difference(row.score)
    summary = f"{PAGE.difference(change['difference'])} against dense" if change else "no comparison"
    title = f"{record['method']['label']} on {record['model']['name']}, {record['evaluation']['task']}"
    return (
        f"<entry><title>{_xml(title)}</title><id>urn:harness:run:{row.id}</id>"
        f"<updated>{escape(record['started'])}</updated><link href={quoteattr(f'{base}runs/{row.id}.html')}/>"
        f"<summary>{_xml(summary)}</summary></entry>"
    )


def _xml(text: str) -> str:
    """Text as XML; characters that XML has no way to write are replaced."""
    return escape(printable(text))


def every_eval_ever(record: Record) -> dict[str, Any]:
    """One run in the schema of evaleval/every_eval_ever; scores without a value are left out.

    The schema wants strings in its free fields.
    """
    method, model, asked, started = record["method"], record["model"], record["evaluation"], record["started"]
    versions = record["environment"]["versions"]
    stamp = str(datetime.fromisoformat(started).timestamp())
    return {
        "schema_version": EVERY_EVAL_EVER,
        "evaluation_id": f"{asked['task']}/{model['name']}/{record['id']}",
        "evaluation_timestamp": stamp,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": "harness leaderboard",
            "source_type": "evaluation_run",
            "source_organization_name": "harness",
            "evaluator_relationship": "third_party",
        },
        "eval_library": {"name": "lm_eval", "version": versions.get("lm_eval", "unknown")},
        "model_info": {
            "name": model["name"],
            "id": model["pretrained"],
            "inference_engine": {"name": "transformers", "version": versions.get("transformers", "unknown")},
            "additional_details": {
                "efficiency_method": method["label"],
                "savings": saving(record),
                "dtype": model["dtype"],
                "fingerprint": model["fingerprint"],
                **({"weights": rounding.label} if (rounding := Rounding.of(model)) else {}),
            },
        },
        "evaluation_results": [
            _shared_score(record, score) for score in record["scores"] if score["value"] is not None
        ],
    }


def _shared_score(record: Record, score: Record) -> dict[str, Any]:
    uncertainty: dict[str, Any] = {"num_samples": score["n"]}
    if score["stderr"] is not None:
        uncertainty["standard_error"] = {"value": score["stderr"]}
    result = {
        "evaluation_name": f"{score['task']}, {score['metric']}, {score['filter']}",
        "source_data": {
            "dataset_name": score["task"],
            "source_type": "other",
            "additional_details": {"documents": record["evaluation"]["data"]},
        },
        "metric_config": {"lower_is_better": score["higher_is_better"] is False},
        "score_details": {"score": score["value"], "uncertainty": uncertainty},
    }
    if record["command"]:
        result["generation_config"] = {"generation_args": {"execution_command": record["command"]}}
    return result
