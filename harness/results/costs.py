"""The costs of a record: what was modelled and measured, in which terms, and how far to trust it.

All units are SI base units; what was not measured is null, never 0.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final, Literal

from pydantic import Field, model_validator

from harness.results.conditions import Conditions
from harness.results.graph import Graph
from harness.results.section import Section
from harness.results.throughput import Throughput

Provenance = Literal[
    "measured_counter", "measured_power_sampled", "estimated_load_tdp", "estimated_constant", "modeled", "none"
]

LEAST_SEEN: Final = 0.10
"""Share of an estimated energy that must come of something other than a constant power times the time, for its ratio to
say more than the ratio of wall times: where memory's constant is 95 %, energy follows the clock to a few percent."""


class Summary(Section):
    """A sample of measurements, in its own unit.

    Attributes:
        n: measurements.
        median_low, median_high: 95 % interval of the median, by resampling.
        relative_iqr: interquartile range over the median: how noisy it was.
        p90, p95, p99: null where the sample is too small (44, 90 and 459 measurements).
        drift: rank correlation of the measurements with their order: far from 0 if the machine changed meanwhile.
    """

    n: int
    min: float
    median: float
    median_low: float
    median_high: float
    mad: float
    relative_iqr: float
    p90: float | None
    p95: float | None
    p99: float | None
    drift: float | None


class CostSettings(Section):
    """How the cost pass was made.

    Attributes:
        prompts: requests drawn from the task's own, by seed, spread over their lengths.
        rounds: times that each was measured, dense and the method taking turns.
        warmup: unmeasured runs of each request before its first measured one.
        new_tokens: tokens generated for a request, at most; the end token is not heeded, so that a method that
            writes less is not credited with speed.
        isolated: whether it ran in a process of its own.
        chunk: requests run one after another before the turn changed.
    """

    prompts: int
    rounds: int
    warmup: int
    new_tokens: int
    seed: int
    isolated: bool
    chunk: int


class Latency(Section):
    """Wall time of single requests on this machine, at batch size 1.

    Attributes:
        regime: how they were served: alone, as the model is written. Batches (``Throughput``) and captured steps
            (``Graph``) are regimes of their own, and times of two are never compared.
        kind: "generate" reads a prompt and writes tokens; "score" reads a given text once.
        clock: what was read, in words; null in older runs.
        typical_s: from submission to the last token: the median over requests of each request's median over rounds.
        end_to_end: the same of all measurements.
        ttft: to the first token. ``itl``: every gap between arrivals of tokens.
        tpot: of each request, from the first arrival of tokens to the last, per token that came after the first
            arrival: (last - first) / (tokens - 1) where tokens come one by one.
        prefill_tokens_per_s: prompt tokens per second until the first token.
        decode_tokens_per_s: tokens after the first arrival per second of writing them.
        raw: every measurement of ``end_to_end``, [requests][rounds]; ``costs.jsonl`` says of which documents.
        doubts: why not to trust it, in words; empty if nothing is known.
    """

    regime: Literal["one request"] = "one request"
    kind: Literal["generate", "score", "mixed"]
    clock: str | None = None
    typical_s: float | None = None
    end_to_end: Summary
    ttft: Summary | None = None
    tpot: Summary | None = None
    itl: Summary | None = None
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None = None
    raw: list[list[float]]
    conditions: Conditions
    doubts: list[str] = Field(default=[])

    @model_validator(mode="after")
    def _typical(self) -> "Latency":
        """Older runs have the measurements and not the number."""
        if self.typical_s is None and self.raw and all(self.raw):
            self.typical_s = typical(self.raw)
        return self


def typical(rounds: Sequence[Sequence[float]]) -> float:
    """The median over requests of each request's median over rounds, of [requests][rounds]."""
    return median(median(times) for times in rounds)


class AddedCosts(Section):
    """Seconds of what a method adds to the model's own work, measured where it happens; null where none happened.

    Attributes:
        call: of a call of a router or an exit classifier, with its share of the whole decision: pooling, softmax,
            reading the result back.
        mac: of a multiply-accumulate in it.
        position: of a position of the forward that it is called in.
        check: of what surrounds the head's own work in a call that checks an exit by the head.
        check_token: of each token that such a call checks; in older runs ``check`` is of a token's check.
        fill: of a token's keys and values for one layer, from the layer's norm to the cache; ``fill_call`` of a call,
            of however many tokens: on a device that waits for launches, all of it. In older runs it is in ``fill``.
        error: mean relative error of these prices for requests that they were not fitted on; null where too few were
            timed.
    """

    call: float | None = None
    mac: float = 0.0
    position: float = 0.0
    check: float = 0.0
    check_token: float = 0.0
    fill: float | None = None
    fill_call: float = 0.0
    error: float | None = None


class Ideal(Section):
    """Idealized runtime: seconds per document of the quality pass, from its trace and a cost profile of this host.

    Attributes:
        profile: the measurement of the dense model's costs; ``label`` says how well it fits.
        profile_s: seconds that measuring it took; ``cut_short`` if its budget ended it before it was good.
        ref_s: with dense layers' costs: what skipping and adding work changes.
        own_s: with the costs of the method's own modules; null where they could not be profiled.
        dense_s: of dense on the same tokens, with its own costs; null in older records.
        own_profile: the measurement of those; ``profile`` where the modules are dense's.
        speedup_error: mean relative error of speed-ups that the profile predicts; ``speedup_worst`` the largest.
        added: what the method adds to the model's own work; null where it adds nothing, or in older runs.
        parts: ``ref_s`` by component.
        requests_s: of the requests whose latency was measured, by the same statistic: the median over requests.
        overhead_ratio: observed over idealized seconds of the cost pass's requests.
        growth: seconds of reading 64 tokens at once, or as many as were timed, over those of reading one: near 1 where
            time does not fall with the work; null in older records.
    """

    profile: str
    label: Literal["good", "fair", "poor"]
    clock: str
    fit_error: float
    held_out_error: float
    profile_s: float | None = None
    cut_short: bool | None = None
    ref_s: float
    own_s: float | None
    dense_s: float | None = None
    own_profile: str | None = None
    own_label: Literal["good", "fair", "poor"] | None = None
    speedup_error: float | None = None
    speedup_worst: float | None = None
    added: AddedCosts | None = None
    parts: dict[str, float]
    requests_s: float | None = None
    overhead_ratio: float | None = None
    growth: float | None = None


LAUNCH_BOUND: Final = (0.2, 1.5)
"""On a GPU, the share of the roofline and the ``Ideal.growth`` below which time is that of launching work."""


class RooflineInfo(Section):
    """The least seconds per document on a named machine, and what follows from them.

    Attributes:
        dollars: at the price table's or the user's price; null without one.
        energy_bound_j: joules at full power for that long (``modeled``), an upper bound; null without a stated power.
        peaks_source: the data sheet that they are from, or how they were measured.
        peak, bandwidth: the machine's FLOP/s in ``dtype`` and bytes/s; ``tdp`` its watts.
        doubts: why it is no bound, in words: something ran faster.
        share: of the machine that ran it alone: the bound over the seconds that it took, the median over the measured
            requests, or where none were measured that of all documents' idealized seconds (``share_of``). Null where it
            is no bound.
        launch_bound: whether, on a GPU, time is that of launching work (``LAUNCH_BOUND``); null on a processor, and
            where no profile says whether time falls with the work.
    """

    seconds: float
    dtype: str
    parts: dict[str, float]
    dollars: float | None = None
    price_usd_per_hour: float | None = None
    energy_bound_j: float | None = None
    peaks_source: str
    peak: float | None = None
    bandwidth: float | None = None
    tdp: float | None = None
    doubts: list[str] = Field(default=[])
    share: float | None = Field(default=None, gt=0, le=1)
    share_of: Literal["measured", "idealized"] | None = None
    launch_bound: bool | None = None


class Time(Section):
    """Modelled and measured time; ``throughput`` is of batches, ``graph`` of captured steps; null unless asked for."""

    settings: CostSettings | None = None
    latency: Latency | None = None
    ideal: Ideal | None = None
    roofline: dict[str, RooflineInfo] = Field(default={})
    throughput: Throughput | None = None
    graph: Graph | None = None


class EnergyPart(Section):
    """Energy of one component over the measured windows.

    Attributes:
        joules: per request of the cost pass; null if nothing could be read.
        source: what was read or assumed, such as "rapl_package" or "psutil_load_tdp".
        scope: whose energy it is.
        watts_assumed: the nominal power of an estimate.
    """

    joules: float | None
    source: str
    provenance: Provenance
    scope: Literal["machine", "process", "device"] | None = None
    watts_assumed: float | None = None


def counted_parts(parts: Mapping[str, EnergyPart]) -> dict[str, EnergyPart]:
    """The components whose joules are added up: where a GPU has a counter, those that counters read; else all."""
    gpu = parts.get("gpu")
    if gpu is None or not gpu.provenance.startswith("measured"):
        return dict(parts)
    return {name: part for name, part in parts.items() if part.provenance.startswith("measured")}


class Energy(Section):
    """Energy of a request, from windows of many.

    Attributes:
        measured_j: joules that counters saw; null, with the reason in ``missing``, where a component has none. Where a
            GPU has a counter, the components that have one are added up, and estimates of the others stand beside them
            in ``parts``.
        estimated_j: joules with nominal powers for what has no counter. Where nearly all of them are a constant power
            times the time (``is_clock``), they say what the clock says, and no ratio is made of them.
        active_j: measured, else estimated joules, without what the idle machine would have used meanwhile.
        idle_w: power of the machine with the model loaded and nothing running; ``busy_w`` while it worked.
        prefill_share: share of the idealized time, hence of the energy, that reading prompts takes.
        label: the weakest provenance that makes up 5 % of the total or more. Estimates are never ranked against
            measurements.
        note: what the label means, in words.
        raw: joules of every window, per request.
        requests_j: joules of each request of the cost pass, in proportion to its idealized seconds; empty where
            ``ideal`` and ``latency`` were not measured with it.
        co2_kg: joules times a carbon intensity that the user chose; null without one.
    """

    measured_j: float | None
    estimated_j: float | None
    active_j: float | None
    idle_w: float | None
    busy_w: float | None = None
    parts: dict[str, EnergyPart]
    label: Provenance
    note: str
    windows: int
    window_s: float
    raw: list[float] = Field(default=[])
    prefill_share: float | None = None
    requests_j: list[float] = Field(default=[])
    co2_kg: float | None = None
    intensity_g_per_kwh: float | None = None
    doubts: list[str] = Field(default=[])

    @property
    def constant_share(self) -> float:
        """Share of the joules that are a constant power times the time; 0 without joules."""
        known = [(part.joules, part.provenance) for part in self.parts.values() if part.joules]
        constant = sum(joules for joules, provenance in known if provenance == "estimated_constant")
        return constant / sum(joules for joules, _ in known) if known else 0.0

    @property
    def is_clock(self) -> bool:
        """Whether an estimate varies with the clock and with hardly anything else."""
        return self.measured_j is None and self.constant_share > 1 - LEAST_SEEN


class Memory(Section):
    """Bytes.

    Attributes:
        weights: parameters and buffers of the attached model by unique storage (counted).
        packed_weights: the same if the weights that a method rounded were packed in its number format, of which the run
            multiplied floats: what they would take, not what was read or measured; null where there are none, and in
            older records.
        kv_peak: largest key-value cache of one sequence, as its caches held it after a forward (counted); null where
            layers keep something else.
        kv_per_token: the same for each position that the sequence had by then, kept or not; null in older records.
        kv_layers: the same by layer of the dense model; null in older records.
        dense_weights, dense_kv_peak: dense's for the same tokens; null in older records.
        disk: the weight files; null for a model that is no folder here.
        peak: most memory of the process (device) while requests ran; ``activations`` is that above the weights and
            the cache.
        rss_anonymous, rss_file: resident memory after a forward, by what backs it.
        cuda_allocated, cuda_reserved: peaks of tensors and of torch's allocator; null without a GPU.
    """

    weights: int
    packed_weights: int | None = None
    kv_peak: int | None
    kv_per_token: float | None = None
    kv_layers: list[int] | None = None
    dense_weights: int | None = None
    dense_kv_peak: int | None = None
    disk: int | None = None
    peak: int | None = None
    activations: int | None = None
    rss_anonymous: int | None = None
    rss_file: int | None = None
    cuda_allocated: int | None = None
    cuda_reserved: int | None = None
