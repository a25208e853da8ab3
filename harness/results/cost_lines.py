"""The lines of ``costs.jsonl``: what was modelled for each document, and measured for those that were served again.

Written by the cost pass, in a file of its own, so that the documents' lines are written once. Dense's times beside a
method's stand in the method's file: ratios can be made anew from it alone.
"""

from collections.abc import Iterable
from typing import Final, Literal, NotRequired

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from harness.results.samples import Identified, Key, SampleLine, SegmentLine, key_of

ROLES: Final = ("run", "dense", "dense_repeat")
Role = Literal["run", "dense", "dense_repeat"]
"""Whose times: the run's own, dense's between them, and dense's once more, which differ from dense's by noise alone."""


class Timings(TypedDict):
    """Seconds of one request, [rounds] each; of tokens only where at least two arrived one after the other."""

    latency: list[float]
    ttft: NotRequired[list[float]]
    tpot: NotRequired[list[float]]


@with_config(ConfigDict(extra="forbid"))
class RequestLine(TypedDict):
    """A request that the cost pass served.

    Attributes:
        prompt_tokens: tokens read; ``new_tokens`` written, 0 for a scored text.
        run, dense, dense_repeat: times by ``ROLES``, in the same rounds; dense's own file has no ``dense``.
        segments: what ran for it; ``ideal_s`` is its idealized seconds.
    """

    prompt_tokens: int
    new_tokens: int
    run: Timings
    dense: NotRequired[Timings]
    dense_repeat: NotRequired[Timings]
    segments: NotRequired[list[SegmentLine]]
    ideal_s: NotRequired[float]


@with_config(ConfigDict(extra="forbid"))
class CostLine(Identified):
    """One document of a run.

    Attributes:
        ideal_s: idealized seconds of everything that ran for it; ``dense_ideal_s`` are dense's for the same tokens,
            which older runs do not have.
        requests: those of its requests that were served again and measured; most documents have none.
    """

    ideal_s: NotRequired[float]
    dense_ideal_s: NotRequired[float]
    requests: NotRequired[list[RequestLine]]


COST_LINE: Final = TypeAdapter[CostLine](CostLine)
CostLines = dict[Key, CostLine]


def requests_of(lines: Iterable[CostLine]) -> list[RequestLine]:
    """Every measured request, in the order of the lines."""
    return [request for line in lines for request in line.get("requests", ())]


def costs_within(samples: Iterable[SampleLine]) -> CostLines:
    """The idealized seconds that older runs kept in the documents' own lines."""
    return {key_of(line): modelled_line(line, line["ideal_s"]) for line in samples if "ideal_s" in line}


def modelled_line(document: SampleLine, ideal_s: float, dense_ideal_s: float | None = None) -> CostLine:
    """A document's line with its idealized seconds, and those of dense on the same tokens where they are known."""
    task, number, digest = key_of(document)
    line: CostLine = {"task": task, "doc_id": number, "doc_hash": digest, "ideal_s": ideal_s}
    return line if dense_ideal_s is None else {**line, "dense_ideal_s": dense_ideal_s}
