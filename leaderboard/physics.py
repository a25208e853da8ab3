"""Rules of what was measured: numbers are those of the raw measurements, and no machine does what none can.

Limits are wide: they catch what no machine can do, not what few can.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import isclose
from statistics import mean, median
from typing import Any, Final

from harness.leaderboard.case import Case
from harness.measure.accelerators import of_device
from harness.measure.conditions import spread_doubts
from harness.measure.energy import ROUNDS as LEAST_WINDOWS
from harness.measure.energy import WINDOW_S
from harness.reports.columns import at
from harness.results.baseline import RatioInfo
from harness.results.cost_lines import requests_of
from harness.results.costs import EnergyPart, counted_parts, typical
from harness.results.rates import rated
from harness.results.throughput import BatchSize

FORWARD_S: Final = 1e-5
"""Seconds that launching one forward of any model takes at the least."""
_CORE_FLOPS: Final = 1e13  # FLOP/s of a core: 2,048 in a cycle at 5 GHz
_DEVICE_FLOPS: Final = 2e16  # FLOP/s of an accelerator whose data sheet is not known
_CORE_W, _MACHINE_W, _DEVICE_W, _MOST_W = 30.0, 100.0, 2_000.0, 20_000.0
_OF_IDEAL: Final = 0.02
"""Share of the idealized time of the same requests, on the same host, below which no measured time can be."""
_LEAST_BYTES, _CPU_BANDWIDTH, _DEVICE_BANDWIDTH = 200e6, 2e12, 2e13
"""Bytes of weights that stay in no cache, and bytes a second that no memory gives."""
_TIMES: Final = ("latency", "ttft", "tpot")


def latency(case: Case) -> Iterator[str]:
    """Times are those of their raw measurements, and those that stand with the requests."""
    section = at(case.record, "time/latency")
    if section is None:
        return
    raw = [seconds for rounds in section["raw"] for seconds in rounds]
    summary = section["end_to_end"]
    if not raw or min(raw) <= 0 or len(raw) != summary["n"]:
        yield f"{summary['n']} latencies are stated and {len(raw)} are recorded, or some are not positive"
        return
    if not isclose(median(raw), summary["median"], rel_tol=1e-3):
        yield f"the median latency is {summary['median']}, that of its measurements is {median(raw)}"
    elif not isclose(typical(section["raw"]), section["typical_s"], rel_tol=1e-3):
        yield f"the typical latency is {section['typical_s']}, that of its requests is {typical(section['raw'])}"
    elif not isclose(min(raw), summary["min"], rel_tol=1e-3):
        yield f"the least latency is {summary['min']}, that of its measurements is {min(raw)}"
    yield from _ordered(section)
    times: list[Mapping[str, Any]] = [dict(request["run"]) for request in requests_of(case.costs)]
    if times and case.renewed and sorted(each["latency"] for each in times) != sorted(section["raw"]):
        yield "the latencies of the record are not those of the requests in costs.jsonl"
    for name in ("ttft", "tpot"):
        known = [seconds for each in times for seconds in each.get(name, ())]
        if known and section[name] is not None and not isclose(median(known), section[name]["median"], rel_tol=1e-3):
            yield f"the median {name} is {section[name]['median']}, that of its requests is {median(known)}"


def _ordered(section: Mapping[str, Any]) -> Iterator[str]:
    for name in ("end_to_end", "ttft", "tpot", "itl"):
        summary = section[name]
        if summary and not (
            summary["min"] <= summary["median"] * (1 + 1e-9)
            and summary["median_low"] <= summary["median"] * (1 + 1e-9)
            and summary["median"] <= summary["median_high"] * (1 + 1e-9)
        ):
            yield f"the median of {name} lies outside of its own bounds"
    first, whole = section["ttft"], section["end_to_end"]
    if first and first["median"] > whole["median"] * 1.5:
        yield "the first token comes later than the last"


def speed(case: Case) -> Iterator[str]:
    """No request was faster than the machine, and none far below its own idealized time."""
    record, section = case.record, at(case.record, "time/latency")
    if section is None:
        return
    fastest = min(seconds for rounds in section["raw"] for seconds in rounds)
    if fastest < FORWARD_S:
        yield f"a request in {fastest:.2g} s: launching one forward takes longer on any machine"
    for name in ("ttft", "tpot", "itl"):
        if section[name] and section[name]["median"] < FORWARD_S / (20 if name != "ttft" else 1):
            yield f"{name} of {section[name]['median']:.2g} s: launching one forward takes longer on any machine"
    yield from _of_arithmetic(case, peak(record["environment"], record["model"]["dtype"]))
    ideal = at(record, "time/ideal")
    if ideal is None:
        return
    if ideal["requests_s"] and section["typical_s"] < _OF_IDEAL * ideal["requests_s"]:
        yield f"{section['typical_s']:.2g} s a request: {ideal['requests_s']:.2g} s by this host's profile"
    elif section["typical_s"] < _OF_IDEAL / 10 * ideal["ref_s"]:  # a document has a few requests
        yield f"{section['typical_s']:.2g} s a request: documents take {ideal['ref_s']:.2g} s by this host's profile"
    yield from _overhead(case, ideal["overhead_ratio"])


def _overhead(case: Case, stated: float | None) -> Iterator[str]:
    """Observed time over idealized time is that of the requests, and no more than what software adds."""
    if stated is None:
        return
    if not _OF_IDEAL <= stated <= 1 / _OF_IDEAL:
        yield f"{stated:.2g} times its own idealized time"
    pairs = [(request["run"]["latency"], request.get("ideal_s")) for request in requests_of(case.costs)]
    ratios = [median(rounds) / ideal for rounds, ideal in pairs if ideal]
    if ratios and len(ratios) == len(pairs) and not isclose(median(ratios), stated, rel_tol=1e-3):
        yield f"{stated:.4g} times its idealized time is stated, {median(ratios):.4g} is that of its requests"


def _of_arithmetic(case: Case, most: float) -> Iterator[str]:
    """Requests that are faster than their arithmetic, or than reading the weights."""
    record = case.record
    of_token = token_flops(record)
    if not of_token:
        return
    for request in requests_of(case.costs):
        work = of_token * (request["prompt_tokens"] + request["new_tokens"])
        if (seconds := min(request["run"]["latency"])) < work / most:
            yield f"a request in {seconds:.2g} s: its {work:.2g} FLOPs take longer on any machine"
            return
    per_token, drafts = at(record, "time/latency/tpot/median"), record.get("drafts")
    passes = 1.0 if drafts is None else drafts["passes_per_token"]
    if per_token and per_token < passes * pass_s(record, record["trace"]["mean_depth_decode"]):
        yield f"{per_token:.2g} s a token: reading {record['memory']['weights']:,} bytes of weights takes longer"


def pass_s(record: Mapping[str, Any], depth: float | None) -> float:
    """Seconds that reading this share of the weights takes at the least; 0 where they may stay in a cache."""
    weights, environment = record["memory"]["weights"], record["environment"]
    if not depth or weights <= _LEAST_BYTES:
        return 0.0
    known = [entry.bandwidth for entry in of_device(environment["device_name"])]
    of_kind = _CPU_BANDWIDTH if environment["device"].startswith("cpu") else _DEVICE_BANDWIDTH
    return 0.3 * depth * float(weights) / (2 * max(known) if known else of_kind)


def token_flops(record: Mapping[str, Any]) -> float:
    """FLOPs that a token takes at the least, by those of all documents; 0 where they are not known."""
    flops, tokens = record["flops"], (record["trace"]["layer_tokens_total"] or 0) / max(record["model"]["layers"], 1)
    return 0.5 * flops["total"] / tokens if flops is not None and tokens else 0.0


def peak(environment: Mapping[str, Any], dtype: str) -> float:
    """FLOP/s that the machine does not reach."""
    known = [max(entry.peaks.values()) for entry in of_device(environment["device_name"])]
    if known:
        return 2 * max(known)
    return _CORE_FLOPS * max(environment["cpus"], 1) if environment["device"].startswith("cpu") else _DEVICE_FLOPS


def throughput(case: Case) -> Iterator[str]:
    """Tokens a second are those of their batches, and no more than the machine's arithmetic and memory allow."""
    section = at(case.record, "time/throughput")
    for stated in section["sizes"] if section else ():
        size = BatchSize.model_validate(stated)
        yield from (f"batch size {size.batch_size}: {text}" for text in _batches(case.record, size))


def _batches(record: Mapping[str, Any], size: BatchSize) -> Iterator[str]:
    times = [size.run, *([size.dense] if size.dense else [])]
    seconds = [each for of_run in times for rounds in of_run.reading_s + of_run.writing_s for each in rounds]
    if not seconds or min(seconds) < FORWARD_S or min([*size.prompt_tokens, *size.run.written, 1]) < 1:
        yield "batches in no time, or of no tokens"
        return
    computed = rated(size)
    for name in ("reading", "writing"):
        pairs = [(getattr(each, name), getattr(each, f"{name}_ratio")) for each in (size, computed)]
        (rate, ratio), (own_rate, own_ratio) = pairs
        alike = (rate is None) == (own_rate is None) and isclose(rate or 0, own_rate or 0, rel_tol=1e-3)
        if not alike or not is_same(ratio, own_ratio):
            yield f"{name} at {rate} tokens a second is stated, its batches give {own_rate}"
    fastest = max(computed.reading, computed.writing or 0)
    if token_flops(record) * fastest > peak(record["environment"], record["model"]["dtype"]):
        yield "more tokens a second than any such machine has the arithmetic for"
    step, drafts = size.batch_size / computed.writing if computed.writing else None, record.get("drafts")
    if step is not None and drafts is None and step < pass_s(record, record["trace"]["mean_depth_decode"]):
        yield f"{step:.2g} s for a token of every row: reading {record['memory']['weights']:,} bytes takes longer"
    depths = [record["trace"][name] for name in ("mean_depth_prefill", "mean_depth_decode")]
    known = [depth for depth in depths if depth is not None and drafts is None]
    if size.layers_run is not None and known and not min(known) / 2 <= size.layers_run <= 2 * max(known):
        yield f"{size.layers_run:.2f} of the layers are said to have run, and {known[0]:.2f} ran in the evaluation"
    doubts = [*spread_doubts(size.run.reading_s), *([size.repeated] if size.repeated else [])]
    yield from hidden(doubts, size.doubts)


def is_same(stated: RatioInfo | None, computed: RatioInfo | None) -> bool:
    """Whether a ratio and its bounds are as computed."""
    if stated is None or computed is None:
        return stated is computed
    pairs = [(getattr(stated, name), getattr(computed, name)) for name in ("value", "low", "high")]
    return all(one is two or (None not in (one, two) and isclose(one, two, rel_tol=1e-3)) for one, two in pairs)


def hidden(doubts: Iterable[str], stated: Iterable[str]) -> Iterator[str]:
    """The first doubt that follows from measurements and is not stated beside them."""
    if absent := [doubt for doubt in doubts if doubt not in stated]:
        yield f"a doubt is left out: {absent[0]}"


def energy(case: Case) -> Iterator[str]:
    """Joules are those of their parts, windows and watts, read in steady state, at a power that the machine has."""
    section = case.record.get("energy")
    if section is None:
        return
    total = section["measured_j"] if section["measured_j"] is not None else section["estimated_j"]
    if section["measured_j"] is not None and section["estimated_j"] is not None:
        yield "joules are both measured and estimated"
    if total is None:
        return
    parts = counted_parts({name: EnergyPart.model_validate(part) for name, part in section["parts"].items()})
    known = [part.joules for part in parts.values() if part.joules is not None]
    if not known or not isclose(sum(known), total, rel_tol=1e-3):
        yield f"{total:.4g} J are stated, and the parts sum to {sum(known):.4g} J"
    if section["raw"] and not min(section["raw"]) * 0.999 <= total <= max(section["raw"]) * 1.001:
        yield f"{total:.4g} J are stated, and no window saw that little or that much"
    if section["requests_j"] and not isclose(mean(section["requests_j"]), total, rel_tol=1e-3):
        yield f"{total:.4g} J are stated, and {mean(section['requests_j']):.4g} J are the mean of the requests"
    yield from _provenance(section, parts, total)
    if section["measured_j"] is not None and (section["windows"] < LEAST_WINDOWS or section["window_s"] < WINDOW_S):
        yield f"energy of {section['windows']} windows of {section['window_s']:.1f} s: no steady state"
    yield from _power(case, section, total)


def _provenance(section: Mapping[str, Any], parts: Mapping[str, EnergyPart], total: float) -> Iterator[str]:
    if section["measured_j"] is None:
        return
    if not section["label"].startswith("measured"):
        yield f"joules are said to be measured, and labelled {section['label']}"
    guessed = [
        name
        for name, part in parts.items()
        if not part.provenance.startswith("measured") and (part.joules is None or part.joules > 0.06 * total)
    ]
    if guessed:
        yield f"joules are said to be measured, and those of {', '.join(map(ascii, guessed[:3]))} are not"


def _power(case: Case, section: Mapping[str, Any], total: float) -> Iterator[str]:
    environment = case.record["environment"]
    most, busy, idle = _most_watts(environment), section.get("busy_w"), section["idle_w"]
    for name, watts in (("busy", busy), ("idle", idle)):
        if watts is not None and watts > most:
            yield f"{watts:.0f} W ({name}) are more than the {most:.0f} W that such a machine takes"
    if section["active_j"] is not None and section["active_j"] > total * 1.001:
        yield "more joules above idle than in all"
    measured = at(case.record, "time/latency/raw")
    if not measured:
        return
    seconds = mean(value for rounds in measured for value in rounds)
    watts = total / seconds
    if watts > 3 * most:
        yield f"{total:.3g} J in {seconds:.3g} s a request are {watts:.3g} W: more than such a machine takes"
    if busy is not None and not busy / 10 <= watts <= 10 * busy:
        yield f"{total:.3g} J in {seconds:.3g} s a request are {watts:.3g} W, and {busy:.3g} W are stated"
    if watts < 1e-3:
        yield f"{total:.3g} J in {seconds:.3g} s a request: less power than any machine takes"


def _most_watts(environment: Mapping[str, Any]) -> float:
    """What such a host takes, and its device a fifth over its stated power, or more than any does."""
    cores: int = environment["cpus"]
    host = min(_MACHINE_W + _CORE_W * cores, _MOST_W)
    stated = [entry.tdp for entry in of_device(environment["device_name"]) if entry.tdp is not None]
    if environment["device"].startswith("cpu"):
        return host
    return host + (1.2 * max(stated) if stated else _DEVICE_W)
