"""From what the cost pass observed of a run to its files: ``costs.jsonl``, and the sections of its record."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from harness.measure.accelerators import HOST, accelerator, of_device, prices
from harness.measure.energy import missing_reason
from harness.measure.memory import Peak, weight_files_bytes
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, Served
from harness.measure.shape import ModelShape
from harness.measure.this_host import this_host
from harness.measure.traffic import kv_cache_bytes
from harness.results import costs
from harness.results.baseline import Baseline, Beside
from harness.results.compare import StoredRun, compared
from harness.results.conditions import Conditions
from harness.results.cost_lines import CostLine, CostLines, RequestLine, requests_of
from harness.results.record import RunRecord
from harness.results.samples import SampleLine, key_of
from harness.results.sources import digest
from harness.results.store import RunFolder
from harness.run.command import command
from harness.run.measured import clock_of, latency_of, timings_of
from harness.run.modelled import (
    NOT_KEPT,
    Profiles,
    RequestTimes,
    checked,
    ideal,
    idealized_lines,
    of_requests,
    priced_lines,
    rooflines,
    rows_of,
    stored_times,
    with_share,
)
from harness.run.renewal import stored_profiles
from harness.run.spec import Measure, RunSpec

NOT_IDEALIZED: Final = "idealized time is of the dense model's layers, and this is another model"


@dataclass(frozen=True)
class Subject:
    """The run whose files are completed; ``shape`` is of the model with its methods attached."""

    spec: RunSpec
    folder: RunFolder
    record: RunRecord
    lines: Sequence[SampleLine]
    shape: ModelShape
    dtype: torch.dtype


@dataclass(frozen=True)
class Latencies:
    """Times of the requests.

    Attributes:
        served: by the roles of ``harness.results.cost_lines``, [requests][rounds] each.
        conditions: what happened on the machine meanwhile.
        chunk: requests that were served before the turn changed.
    """

    requests: Sequence[CostRequest]
    served: Mapping[str, Sequence[Sequence[Served]]]
    conditions: Conditions
    chunk: int


@dataclass(frozen=True)
class Observed:
    """What the cost pass observed of a run, and of dense beside it; None where it was not asked for.

    Attributes:
        measured: what was asked for.
        no_peak: why there is no peak where one was asked for.
        traces: what ran for each of the requests that were served; ``times`` is their idealized seconds.
    """

    measured: frozenset[Measure]
    profiles: Profiles | None
    traces: Sequence[Sequence[Segment]] | None
    times: RequestTimes | None
    latencies: Latencies | None
    peak: Peak | None
    no_peak: str
    energy: costs.Energy | None
    dense_peak: Peak | None
    dense_energy: costs.Energy | None


def complete(run: Subject, observed: Observed, dense: RunFolder | None) -> None:
    """Write the run's costs, then its record with everything that was observed and its ratios to dense."""
    old = run.record.time or costs.Time()
    modelled, bounds = old.ideal, old.roofline
    settings, latency = _latency(run, observed)
    lines = _measured_lines(run, observed)
    requests = requests_of(lines.values())
    if observed.profiles is not None:
        times = stored_times(requests, observed.profiles, run.shape)
        modelled, seconds = ideal(run.lines, run.shape, observed.profiles, times, requests)
        lines = idealized_lines(run.lines, lines, seconds, times)
        bounds = bounds | _rooflines(run, requests)
    elif latency is not None and modelled is not None:  # these are other requests than it was made for
        profiles = stored_profiles(modelled)
        times = stored_times(requests, profiles, run.shape) if profiles else None
        modelled, lines = of_requests(modelled, times, requests), priced_lines(lines, times)
    if latency is not None:
        bounds = checked(bounds, requests, run.shape)
    bounds = with_share(bounds, modelled, requests, run.shape, run.spec.environment.device)
    new = {"settings": settings or old.settings, "latency": latency or old.latency}
    time = old.model_copy(update={**new, "ideal": modelled, "roofline": bounds})
    measured = {*run.record.measured, *observed.measured}
    sections: dict[str, object] = {
        "command": whole_command(run.spec, measured, time),
        "time": time if time.latency or time.ideal or time.throughput or time.graph else None,
        "memory": _memory(run, observed),
        "energy": observed.energy or run.record.energy,
        "measured": sorted(measured),
    }
    if observed.profiles is not None:
        modelled_sources = {"time.ideal": digest("time.ideal"), "time.roofline": digest("time.roofline")}
        sections["sources"] = run.record.sources | modelled_sources
    record = run.record.model_copy(update=sections)
    record.missing = _missing(record, observed, requests)
    run.folder.write_costs(lines.values())
    if dense is not None:
        beside = _beside(run.record.baseline, observed)
        record = compared(StoredRun.of(record, run.lines, lines), dense, beside)
    run.folder.rewrite(record)


def give_up(folder: RunFolder, record: RunRecord, wanted: frozenset[Measure], reason: str) -> None:
    """Write why costs that were asked for were not measured; those that were measured before stay."""
    time, missing = record.time or costs.Time(), dict(record.missing)
    known = {
        "latency": ("time.latency", time.latency),
        "ideal": ("time.ideal", time.ideal),
        "memory": ("memory.peak", record.memory.peak),
        "energy": ("energy", record.energy),
        "throughput": ("time.throughput", time.throughput),
        "graph": ("time.graph", time.graph),
    }
    if "throughput" in wanted and time.throughput is not None:
        missing["time.throughput.sizes"] = reason
    for measure, (path, value) in known.items():
        if measure in wanted and value is None:
            missing["time" if path.startswith("time.") and record.time is None else path] = reason
    folder.rewrite(record.model_copy(update={"missing": missing}))


def whole_command(spec: RunSpec, measured: Collection[Measure], time: costs.Time | None) -> str:
    """The command that makes the scores and, in one go, all that was measured of them since."""
    batched = time.throughput.answered if time and time.throughput else spec.job.costs.batch_sizes
    update = {"measure": frozenset({"flops", *measured}), "batch_sizes": tuple(sorted(batched))}
    plan = spec.job.costs.model_copy(update=update)
    return command(replace(spec, job=spec.job.model_copy(update={"costs": plan})))


def _rooflines(run: Subject, requests: Sequence[RequestLine]) -> dict[str, costs.RooflineInfo]:
    if run.record.flops is None:
        return {}
    plan, table = run.spec.job.costs, prices().usd_per_hour
    dtype = str(run.dtype).removeprefix("torch.")
    # the card that the run is on, where its data sheet is known, beside those that were asked for
    own = [machine.name for machine in of_device(run.spec.environment.device_name) if machine.states(dtype)]
    machines = [
        this_host(run.spec.environment, run.dtype) if name == HOST else accelerator(name)
        for name in dict.fromkeys((*own, *plan.accelerators))
    ]
    priced = [(machine, plan.usd_per_hour or table.get(machine.name)) for machine in machines]
    return rooflines(run.lines, run.shape, priced, dtype, requests)


def _latency(run: Subject, observed: Observed) -> tuple[costs.CostSettings | None, costs.Latency | None]:
    plan, latencies = run.spec.job.costs, observed.latencies
    if latencies is None:
        return None, None
    settings = costs.CostSettings(
        prompts=len(latencies.requests),
        rounds=plan.rounds,
        warmup=plan.warmup,
        new_tokens=plan.new_tokens,
        seed=plan.seed,
        isolated=plan.isolate,
        chunk=latencies.chunk,
    )
    clock = clock_of(run.spec.environment.device)
    return settings, latency_of(latencies.requests, latencies.served["run"], latencies.conditions, clock)


def _memory(run: Subject, observed: Observed) -> costs.Memory:
    memory, peak = run.record.memory, observed.peak
    if "memory" not in observed.measured:
        return memory
    disk = run.spec.loaded.disk or weight_files_bytes(Path(run.spec.loaded.loadable))
    if peak is None:
        return memory.model_copy(update={"disk": disk})
    cached = max(kv_cache_bytes(run.shape, segments) for line in run.lines for segments in rows_of(line))
    measured = {
        "disk": disk,
        "peak": peak.peak,
        "activations": max(peak.peak - peak.before - cached, 0),
        "rss_anonymous": peak.anonymous,
        "rss_file": peak.file,
        "cuda_allocated": peak.allocated,
        "cuda_reserved": peak.reserved,
    }
    return memory.model_copy(update=measured)


def _beside(old: Baseline | None, observed: Observed) -> Beside:
    """What dense measured beside the run now, and before of what is not new."""
    before = (old and old.beside) or Beside()
    peak, power = observed.dense_peak, observed.dense_energy
    return Beside(
        peak_memory=peak.peak if peak else before.peak_memory,
        energy_j=power.raw if power else before.energy_j,
        energy_is_measured=power.measured_j is not None if power else before.energy_is_measured,
    )


def _missing(record: RunRecord, observed: Observed, requests: Sequence[RequestLine]) -> dict[str, str]:
    """Why what is null is null, now that costs were measured."""
    power, modelled = record.energy, record.time.ideal if record.time else None
    present = {
        "time": record.time is not None,
        "time.latency": record.time is not None and record.time.latency is not None,
        "time.ideal": modelled is not None,
        "energy": power is not None,
        "memory.peak": record.memory.peak is not None,
        "energy.measured_j": power is not None and power.measured_j is not None,
        "time.ideal.own_s": modelled is not None and modelled.own_s is not None,
        "time.ideal.requests_s": modelled is not None and modelled.requests_s is not None,
        "time.ideal.overhead_ratio": modelled is not None and modelled.overhead_ratio is not None,
    }
    missing = {path: why for path, why in record.missing.items() if not present.get(path, False)}
    if "memory" in observed.measured and record.memory.peak is None:
        missing["memory.peak"] = observed.no_peak
    if record.model.base is not None and record.time is not None:
        missing["time.ideal"] = NOT_IDEALIZED
    if "ideal" in observed.measured and modelled is None and "flops" in record.missing:
        missing["time.ideal"] = record.missing["flops"]
    if power is not None and (reason := missing_reason(power, record.environment.device)):
        missing["energy.measured_j"] = reason
    if modelled is not None and modelled.own_s is None:
        missing["time.ideal.own_s"] = "the method's own modules could not be profiled at other depths"
    for name in ("requests_s", "overhead_ratio"):
        if modelled is not None and getattr(modelled, name) is None:
            missing[f"time.ideal.{name}"] = _why_not_priced(requests)
    return missing


def _why_not_priced(requests: Sequence[RequestLine]) -> str:
    """Why measured requests have no idealized seconds."""
    if not requests:
        return "no requests were measured beside it"
    if not all(request.get("segments") for request in requests):
        return NOT_KEPT
    return "the cost profile that the documents' idealized times were made with is not here any more"


def _measured_lines(run: Subject, observed: Observed) -> CostLines:
    """The run's costs by document, with what was measured now in place of what was measured before."""
    old, requests = run.folder.costs(), _request_lines(observed)
    lines: CostLines = {}
    for document in run.lines:
        key = key_of(document)
        line = CostLine(task=key[0], doc_id=key[1], doc_hash=key[2])
        before = old.get(key, line)
        if "ideal_s" in before:
            line["ideal_s"] = before["ideal_s"]
        if "dense_ideal_s" in before:
            line["dense_ideal_s"] = before["dense_ideal_s"]
        measured = before.get("requests") if requests is None else requests.get(key[:2])
        if measured:
            line["requests"] = measured
        if len(line) > len(key):
            lines[key] = line
    return lines


def _request_lines(observed: Observed) -> dict[tuple[str, int], list[RequestLine]] | None:
    """The measured requests by task and document; None if latency was not measured now."""
    latencies = observed.latencies
    if latencies is None:
        return None
    by_document: dict[tuple[str, int], list[RequestLine]] = {}
    for index, request in enumerate(latencies.requests):
        timings = {role: timings_of(request, served[index]) for role, served in latencies.served.items()}
        line = RequestLine(prompt_tokens=len(request.tokens), new_tokens=request.new_tokens, run=timings["run"])
        if "dense" in timings:
            line["dense"], line["dense_repeat"] = timings["dense"], timings["dense_repeat"]
        if observed.traces is not None:
            line["segments"] = [segment.to_json() for segment in observed.traces[index]]
        by_document.setdefault((request.task, request.document), []).append(line)
    return by_document
