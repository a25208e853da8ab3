"""From lm-eval's results and the rows that the model served to scores, totals, and a line per document."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, isnan
from typing import Any, Final

from harness.evaluate.journal import Served
from harness.measure.audit import Audit
from harness.measure.drafts import drafts
from harness.measure.flops import causal_flops, executed_flops, unknown_flops
from harness.measure.routes import routes
from harness.measure.segment import READING, WRITING, Segment, depth, ran_as_dense, row_as_dense, unpadded
from harness.measure.shape import ModelShape
from harness.measure.traffic import Cached, keeps_all, kv_cache, kv_cache_bytes, traffic
from harness.results.audit import audit_doubt
from harness.results.drafts import Drafts
from harness.results.record import Flops as FlopsInfo
from harness.results.record import Routes, TraceTotals
from harness.results.samples import SampleLine
from harness.results.scores import Score

UNREAD: Final = "the cache keeps its numbers where they cannot be read: it counts as one that keeps them all"
BROKEN_WRITING: Final = "answers were written from logits that are not a number"


@dataclass(frozen=True)
class Outcome:
    """What an evaluation amounts to.

    Attributes:
        scores: every metric of every task and group, per filter.
        lines: one per document, for the samples file.
        trace: work in tokens and layers.
        routes: the paths that rows took; None for dense, and where what ran are no paths of layers.
        flops: arithmetic and traffic, and the dense model's on the same tokens; None where they are not known.
        unknown_flops: why they are not.
        drafts: what came of guessed tokens; None where none were verified.
        cache: the largest key-value cache that one row held.
        dense_kv_peak: bytes of dense's largest for the same tokens.
        warnings: what makes the scores doubtful.
    """

    scores: list[Score]
    lines: list[SampleLine]
    trace: TraceTotals
    routes: Routes | None
    flops: FlopsInfo | None
    unknown_flops: str | None
    drafts: Drafts | None
    cache: Cached
    dense_kv_peak: int
    warnings: list[str]


@dataclass(frozen=True)
class Reference:
    """The dense model beside a run, on the same tokens.

    Attributes:
        is_run: the run is the dense one, so that what ran is what dense runs.
    """

    shape: ModelShape
    is_run: bool

    def segments(self, rows: Iterable[Served]) -> list[Segment]:
        """What dense runs for these rows."""
        windows = [layer.window for layer in self.shape.layers]
        of_rows = (row.segments if self.is_run else row_as_dense(row.segments, windows) for row in rows)
        return [self._with_its_layers(segment) for segments in of_rows for segment in segments]

    def _with_its_layers(self, dense: Segment) -> Segment:
        """What dense runs, where the run's model has another number of layers."""
        layers, share = len(self.shape.layers), 1 / dense.rows
        if len(dense.attention) == layers:
            return dense
        tokens, reads = (dense.queries,) * layers, (share,) * layers
        return replace(dense, attention=tokens, mlp=tokens, attention_reads=reads, mlp_reads=reads, keys=())


def summary(
    results: dict[str, Any],
    served: Sequence[Served],
    shape: ModelShape,
    dense: ModelShape | None,
    *,
    samples: dict[str, list[int]] | None = None,
    audit: Audit | None = None,
) -> Outcome:
    """Summarise an evaluation.

    Args:
        results: of lm-eval's evaluation.
        served: the rows that the model served.
        shape: the model that ran.
        dense: the dense model that it is compared with; None where the run is the dense one.
        samples: the documents that ``--samples`` chose.
        audit: of some requests that were served again; None where that could not be done.
    """
    known = shape.uncounted is None
    executed = None if dense is None else not _same_work(served, shape, dense)
    routes = None if dense is None else _routes(served)
    reference = Reference(dense or shape, is_run=dense is None)
    every = [segment for row in served for segment in row.segments]
    unknown = unknown_flops(shape, every)
    caches = [kv_cache(shape, row.segments) for row in served]
    return Outcome(
        scores=_scores(results),
        lines=list(sample_lines(results, served, shape, reference, samples)),
        trace=_trace_totals(served, known=known, executed=executed),
        routes=routes,
        flops=_flops(served, shape, reference, audit) if unknown is None else None,
        unknown_flops=unknown,
        drafts=drafts(shape, every),
        cache=max(caches, key=lambda cache: cache.bytes, default=Cached((), 0)),
        dense_kv_peak=max((kv_cache_bytes(reference.shape, reference.segments([row])) for row in served), default=0),
        warnings=[
            *_broken_answers(served),
            *([UNREAD] if any(segment.unread for segment in every) else []),
            *([doubt] if audit and (doubt := audit_doubt(audit.ratio)) else []),
        ],
    )


def _scores(results: dict[str, Any]) -> list[Score]:
    """Scores with lm-eval's own values and standard errors."""
    scores = []
    for task, metrics in results["results"].items():
        better = results.get("higher_is_better", {}).get(task) or {}
        scored = Counter(
            (metric, sample["filter"])
            for leaf in leaves(task, results)
            for sample in results["samples"].get(leaf, ())
            for metric in sample["metrics"]
        )
        listed = [entry["metric"] for entry in results.get("configs", {}).get(task, {}).get("metric_list") or ()]
        for key, value in sorted(metrics.items(), key=lambda pair: _place(pair[0], listed)):
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or metric == "bypass":
                continue
            stderr = metrics.get(f"{metric}_stderr,{filter_name}")
            scores.append(
                Score(
                    task=task,
                    metric=metric,
                    filter=filter_name,
                    value=_number(value),
                    stderr=_number(stderr),
                    n=scored[metric, filter_name],
                    higher_is_better=better.get(metric),
                )
            )
    return scores


def _place(key: str, listed: list[Any]) -> int:
    """Where a task's own definition lists a score; after all others if it does not."""
    metric = key.partition(",")[0]
    return listed.index(metric) if metric in listed else len(listed)


def leaves(name: str, results: dict[str, Any]) -> Iterator[str]:
    """The tasks of a group, or the task itself."""
    children = results.get("group_subtasks", {}).get(name)
    if not children:
        yield name
    for child in children or ():
        yield from leaves(child, results)


def _number(value: Any) -> float | None:
    """None where lm-eval writes "N/A" because a number is not defined; JSON has no infinity or NaN either."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


def _broken_answers(served: Sequence[Served]) -> list[str]:
    """Warnings where logits are not a number: lm-eval scores such answers like any others."""
    scored = [answer[0] for row in served for answer in row.answers if isinstance(answer, tuple)]
    broken = sum(map(isnan, scored))
    written = [row for row in served if not any(isinstance(answer, tuple) for answer in row.answers)]
    read = sum(row.is_broken for row in written)
    kinds = ((broken, len(scored), "log-likelihoods are not a number"), (read, len(written), BROKEN_WRITING))
    return [f"{count} of {of} {what}: the scores mean nothing" for count, of, what in kinds if count]


def by_document(served: Iterable[Served]) -> dict[tuple[str, int], list[Served]]:
    """Rows by (task, document). A row that several documents share is counted for each of them."""
    documents: dict[tuple[str, int], list[Served]] = defaultdict(list)
    for row in served:
        for place in dict.fromkeys((request.task, request.document) for request in row.requests):
            documents[place].append(row)
    return documents


def sample_lines(
    results: dict[str, Any],
    served: Iterable[Served],
    shape: ModelShape,
    dense: Reference,
    chosen: dict[str, list[int]] | None,
) -> Iterator[SampleLine]:
    """One line per document: its scores under every filter, its tokens, its work and dense's on the same tokens."""
    documents = by_document(served)
    for task, samples in results["samples"].items():
        indices = (chosen or {}).get(task)
        merged: dict[int, dict[str, Any]] = {}
        for sample in samples:
            line = merged.setdefault(sample["doc_id"], _line(task, sample))
            line["filtered"][sample["filter"]] = sample["filtered_resps"]
            for metric in sample["metrics"]:
                line["scores"][f"{metric},{sample['filter']}"] = sample[metric]
        for number, line in sorted(merged.items()):
            # under --samples, lm-eval numbers requests by position and documents by their own index
            position = indices.index(number) if indices else number
            yield {**line, **_work((task, position), documents[task, position], shape, dense)}  # type: ignore[typeddict-item]


def _line(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    kept = ("doc_id", "doc_hash", "prompt_hash", "target_hash", "target")
    return {
        "task": task,
        **{key: sample[key] for key in kept},
        "scores": {},
        "responses": sample["resps"],
        "filtered": {},
    }


def _work(place: tuple[str, int], rows: Sequence[Served], shape: ModelShape, dense: Reference) -> dict[str, Any]:
    """What one document of a task cost, by its rows."""
    segments = [segment for row in rows for segment in row.segments]
    return {
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "output_tokens": sum(row.output_tokens for row in rows),
        "pad_tokens": sum(segment.padding * segment.forwards for segment in segments),
        "depth": depth(segments, *READING, *WRITING).mean,
        **(
            {"flops": None}
            if unknown_flops(shape, segments)
            else {
                "flops": executed_flops(shape, segments).total,
                "dense_flops": executed_flops(dense.shape, dense.segments(rows)).total,
            }
        ),
        "rows": [
            {
                "requests": [(request.part, request.turn) for request in row.requests if request[:2] == place],
                "segments": [s.to_json() for s in row.segments],
            }
            for row in rows
        ],
    }


def _trace_totals(served: Sequence[Served], *, known: bool, executed: bool | None) -> TraceTotals:
    """The run's work in tokens and layers.

    Args:
        known: whether the model's layers are seen.
        executed: the method did some work differently from dense.
    """
    segments = [segment for row in served for segment in row.segments]
    return TraceTotals(
        forwards=round(sum(segment.forwards / segment.rows for segment in segments)),
        prompt_tokens=sum(row.prompt_tokens for row in served),
        pad_tokens=sum(segment.padding * segment.forwards for segment in segments),
        output_tokens=sum(row.output_tokens for row in served),
        attention_layer_tokens=sum(s.forwards * sum(s.attention) for s in segments) if known else None,
        mlp_layer_tokens=sum(s.forwards * sum(s.mlp) for s in segments) if known else None,
        layer_tokens_total=depth(segments, *READING, *WRITING).dense if known else None,
        mean_depth_prefill=depth(segments, *READING).mean,
        mean_depth_decode=depth(segments, *WRITING).mean,
        head_tokens=sum(s.forwards * s.head for s in segments),
        executed=executed,
    )


def _flops(served: Sequence[Served], shape: ModelShape, dense: Reference, audit: Audit | None) -> FlopsInfo:
    """The run's arithmetic and traffic, and those of the dense model on the same tokens."""
    segments = [segment for row in served for segment in row.segments]
    of_dense = dense.segments(served)
    executed = executed_flops(shape, segments)
    moved, moved_by_dense = traffic(shape, segments), traffic(dense.shape, of_dense)
    return FlopsInfo(
        total=executed.total,
        useful=executed_flops(shape, unpadded(segments)).total,
        causal=causal_flops(shape, segments).total,
        parts=executed.parts(),
        dense_equivalent=executed_flops(dense.shape, of_dense).total,
        audit_ratio=None if audit is None else audit.ratio,
        audit_stated=None if audit is None else audit.stated,
        audit_counted=None if audit is None else audit.counted,
        weight_bytes=round(moved.weights),
        kv_bytes=moved.kv,
        dense_weight_bytes=round(moved_by_dense.weights),
        dense_kv_bytes=moved_by_dense.kv,
    )


def _routes(served: Iterable[Served]) -> Routes | None:
    counts = routes([row.segments for row in served])
    return None if counts is None else Routes(**counts)


def _same_work(served: Iterable[Served], shape: ModelShape, dense: ModelShape) -> bool:
    """Whether what ran is exactly what dense runs."""
    return shape == dense and all(ran_as_dense(row.segments) and keeps_all(shape, row.segments) for row in served)
