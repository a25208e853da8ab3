"""The lines of ``samples.jsonl``: one document each, its scores, its answers and the work that it took.

A line is a dictionary with a type: pydantic checks a ``TypedDict`` as fast as ``json.loads`` parses, in half the time
of a model class, and thousands of lines are read at once.
"""

from typing import (
    Any,
    Final,
    NotRequired,  # pydantic reads those of typing from Python 3.12 on
)

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

Key = tuple[str, int, str]
"""What identifies a document in any run: its task, its number, and the digest of its contents."""


class Identified(TypedDict):
    """A line about one document; ``doc_hash`` is the digest of its contents, of which a packed run keeps a part."""

    task: str
    doc_id: int
    doc_hash: str


class OlderSegmentLine(TypedDict):
    """Added work as segments of older runs have it; ``extra`` has it now."""

    fill_macs: NotRequired[int]
    router: NotRequired[int]
    router_calls: NotRequired[int]
    router_macs: NotRequired[int]
    auxiliary_bytes: NotRequired[float]


class SegmentLine(OlderSegmentLine):
    """``harness.measure.segment.Segment`` as JSON; like neighbouring layers are one (tokens, reads, layers).

    Attributes:
        extra: added work by kind: tokens, calls, multiply-accumulates, bytes.
        own: parts of layers that were counted as they ran: layer, multiply-accumulates, bytes.
        keys, held: values, and how many neighbouring layers have them.
        uncounted: names of operators.
    """

    phase: str
    queries: int
    padding: int
    context: int
    forwards: int
    rows: int
    attention: list[tuple[int, float, int]]
    mlp: list[tuple[int, float, int]]
    head: tuple[int, float]
    checks: NotRequired[int]
    check_calls: NotRequired[int]
    fill: NotRequired[list[int]]
    extra: NotRequired[dict[str, tuple[int, int, int, float]]]
    own: NotRequired[dict[str, list[tuple[int, int, float | None]]]]
    keys: NotRequired[list[tuple[int, int]]]
    held: NotRequired[list[tuple[int, int]]]
    kept: NotRequired[int]
    ends_in_guess: NotRequired[bool]
    uncounted: NotRequired[list[str]]
    unread: NotRequired[bool]


class RowLine(TypedDict):
    """One row of a batch: the requests (part, turn) of the document that it answered, and what ran for it."""

    requests: list[tuple[int, int]]
    segments: list[SegmentLine]


@with_config(ConfigDict(extra="forbid"))
class SampleLine(Identified):
    """One document of a run.

    Attributes:
        scores: by "metric,filter": a number, or what the metric aggregates, such as (log-likelihood, words).
        responses: what the model answered, request by request; ``filtered`` is what each filter made of it.
        depth: executed share of the layers; null without tokens.
        flops: executed for the document, null where nothing counts them; ``dense_flops`` is what dense executes for the
            same tokens, which older runs do not have.
        rows: what ran; left out of a packed run, as are ``responses`` and ``filtered``.
        answer: what the document was answered, in a few words; of a packed run alone.
        ideal_s: idealized seconds; of older runs alone, which had no ``costs.jsonl``.
    """

    prompt_hash: NotRequired[str]
    target_hash: NotRequired[str]
    target: Any
    scores: dict[str, Any]
    responses: NotRequired[list[Any]]
    filtered: NotRequired[dict[str, Any]]
    prompt_tokens: int
    output_tokens: int
    pad_tokens: int
    depth: float | None
    flops: int | None
    dense_flops: NotRequired[int]
    rows: NotRequired[list[RowLine]]
    answer: NotRequired[str]
    ideal_s: NotRequired[float]


SAMPLE_LINE: Final = TypeAdapter[SampleLine](SampleLine)


def key_of(line: Identified) -> Key:
    """What identifies the line's document in any run."""
    return line["task"], line["doc_id"], line["doc_hash"]
