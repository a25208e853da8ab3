"""A run's costs beside those of the dense run, and the one list of costs by which methods are compared.

Tables, reports and the leaderboard read ``COSTS``.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import Field

from harness.results.section import Section

Kind = Literal["counted", "modelled", "measured", "estimated"]

SAME_LENGTH: Final = (0.99, 1.01)
"""Tokens written over dense's within which two runs wrote texts of one length: their totals are then those of the same
tokens to one percent, less than tables show beside an interval."""


def same_length(output_tokens: float | None) -> bool:
    """Whether a run wrote as much as dense, by its ratio of generated tokens; None where nothing is generated."""
    return output_tokens is None or SAME_LENGTH[0] <= output_tokens <= SAME_LENGTH[1]


class RatioInfo(Section):
    """Method over dense; ``low`` and ``high`` bound it at 95 %, null where it is exact.

    Attributes:
        reason: why there is no interval though it is not exact.
    """

    value: float
    low: float | None = None
    high: float | None = None
    reason: str | None = None


class Beside(Section):
    """What dense measured beside the run, in the same rounds, of what is not measured request by request.

    Attributes:
        peak_memory: bytes.
        energy_j: joules per request, window by window; ``energy_is_measured`` if counters saw all of them.
    """

    peak_memory: int | None = None
    energy_j: list[float] = Field(default=[])
    energy_is_measured: bool = False


class Baseline(Section):
    """The dense run on the same documents that this one is compared with.

    Attributes:
        documents: how many both runs have.
        ratios: by the names of ``COSTS``. Where the run wrote fewer or more tokens than dense (``same_length``), costs
            that grow with the text are over dense's on the same tokens; those of the whole runs, over the texts that
            each wrote, stand beside them by the names of ``TOTALS``.
        noise: dense against dense, measured the same way at the same time: what a ratio of 1 looks like here.
        answers_changed: share of documents that were answered differently than by dense: another choice, another text.
        output_tokens: generated tokens over dense's; null where nothing is generated.
        beside: dense's own numbers that measured ratios were made with; those of requests are in ``costs.jsonl``.
    """

    run_id: str
    documents: int
    ratios: dict[str, RatioInfo] = Field(default={})
    noise: dict[str, RatioInfo] = Field(default={})
    answers_changed: float | None = None
    output_tokens: float | None = None
    beside: Beside | None = None


@dataclass(frozen=True)
class Cost:
    """A cost by which methods are compared, less being better.

    Attributes:
        name: key in ``Baseline.ratios``.
        path: where a record has the absolute value.
        kind: counted, modelled, measured or estimated; never ranked against another kind.
        same_tokens: where a record has the value of dense on the same tokens, for a cost that grows with the text.
    """

    name: str
    title: str
    unit: str
    path: str
    kind: Kind
    same_tokens: str = ""


COSTS: Final = (
    Cost("flops", "FLOPs", "FLOP", "flops.total", "counted", "flops.dense_equivalent"),
    Cost("weight_bytes", "weights read", "B", "flops.weight_bytes", "counted", "flops.dense_weight_bytes"),
    Cost("kv_bytes", "KV read and written", "B", "flops.kv_bytes", "counted", "flops.dense_kv_bytes"),
    Cost("weights", "weights in memory", "B", "memory.weights", "counted"),
    Cost("kv_peak", "KV cache", "B", "memory.kv_peak", "counted", "memory.dense_kv_peak"),
    Cost("ideal_ref", "idealized time, dense layers", "s/doc", "time.ideal.ref_s", "modelled", "time.ideal.dense_s"),
    Cost("ideal_own", "idealized time, own layers", "s/doc", "time.ideal.own_s", "modelled", "time.ideal.dense_s"),
    Cost("ideal_requests", "idealized time, the measured requests", "s", "time.ideal.requests_s", "modelled"),
    Cost("latency", "latency", "s", "time.latency.typical_s", "measured"),
    Cost("ttft", "time to first token", "s", "time.latency.ttft.median", "measured"),
    Cost("tpot", "time per output token", "s", "time.latency.tpot.median", "measured"),
    Cost("peak_memory", "peak memory", "B", "memory.peak", "measured"),
    Cost("energy", "energy per request", "J", "energy.measured_j", "measured"),
    Cost("energy_estimated", "energy per request, estimated", "J", "energy.estimated_j", "estimated"),
)
TOTALS: Final = tuple(
    replace(cost, name=f"{cost.name}_total", title=f"{cost.title}, totals", same_tokens="")
    for cost in COSTS
    if cost.same_tokens
)
"""Costs that grow with the text, over the texts that each run wrote: what a method that writes less is flattered by."""
