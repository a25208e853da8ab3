"""Costs by arithmetic on stored traces: idealized time and rooflines of a run's documents. Needs no model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from harness.measure.accelerators import HOST, Accelerator
from harness.measure.ideal import NOTHING_ADDED, Runtime, ideal_runtime
from harness.measure.profile import CostProfile
from harness.measure.roofline import Bound, dollars, energy_bound, roofline
from harness.measure.segment import READING, Segment, row_as_dense, unpadded
from harness.measure.shape import ModelShape
from harness.results import costs
from harness.results.cost_lines import CostLine, CostLines, RequestLine, modelled_line
from harness.results.samples import Key, SampleLine, key_of

NOT_KEPT: Final = "what ran for the measured requests was not kept"
_NOT_CHECKED: Final = f"not checked: {NOT_KEPT}"
_NOT_CHECKED_PEAKS: Final = "not checked: the peaks that it was made with were not kept"


@dataclass(frozen=True)
class Profiles:
    """The costs that a run's layers are charged with.

    Attributes:
        dense: of dense layers, on this host.
        own: of the modules that the method put in place, which are dense's where they cost the same; None where they
            could not be profiled.
        added: of what the method adds beside the layers; None where it adds nothing.
    """

    dense: CostProfile
    own: CostProfile | None
    added: costs.AddedCosts | None = None

    def runtime(self, shape: ModelShape, segments: Iterable[Segment]) -> Runtime:
        """Idealized seconds of a row, by dense layers' costs."""
        return ideal_runtime(self.dense, shape, segments, self.added or NOTHING_ADDED)


@dataclass(frozen=True)
class RequestTimes:
    """Idealized seconds of requests that were served under observation, [requests], and of reading their prompts."""

    seconds: list[float]
    reading: list[float]

    @property
    def typical(self) -> float:
        """The median over requests, as that of a latency is."""
        return float(np.median(self.seconds))

    @property
    def prefill_share(self) -> float | None:
        """Share of the idealized time that reading takes; None of no time."""
        return sum(self.reading) / total if (total := sum(self.seconds)) else None

    def overhead(self, observed: Sequence[Sequence[float]]) -> float | None:
        """Observed over idealized seconds: the median over requests, of the median of [requests][rounds].

        None where a request has no idealized time.
        """
        if not all(self.seconds):
            return None
        ratios = [float(np.median(rounds)) / ideal for rounds, ideal in zip(observed, self.seconds, strict=True)]
        return float(np.median(ratios))


def rows_of(line: SampleLine) -> list[list[Segment]]:
    """The trace of every row of a document."""
    return [[Segment.from_json(segment) for segment in row["segments"]] for row in line.get("rows", ())]


def request_times(profiles: Profiles, shape: ModelShape, traces: Iterable[Sequence[Segment]]) -> RequestTimes:
    """Idealized seconds of requests by their traces."""
    seconds, reading = list[float](), list[float]()
    for segments in traces:
        seconds.append(profiles.runtime(shape, segments).total)
        read = [segment for segment in segments if segment.phase in READING]
        reading.append(profiles.runtime(shape, read).total)
    return RequestTimes(seconds, reading)


def stored_times(requests: Sequence[RequestLine], profiles: Profiles, shape: ModelShape) -> RequestTimes | None:
    """Idealized seconds of requests that were measured before; None where their traces were not kept."""
    traces = [[Segment.from_json(segment) for segment in request.get("segments", ())] for request in requests]
    return request_times(profiles, shape, traces) if traces and all(traces) else None


def ideal(
    lines: Sequence[SampleLine],
    shape: ModelShape,
    profiles: Profiles,
    times: RequestTimes | None,
    requests: Sequence[RequestLine],
) -> tuple[costs.Ideal, dict[Key, tuple[float, float]]]:
    """Idealized time: the record's section, and each document's seconds and those of dense on the same tokens.

    Args:
        lines: the documents, with their traces.
        shape: the attached model's.
        requests: those that were measured, and ``times`` their idealized seconds; None where what ran for them was not
            kept.
    """
    profile, own = profiles.dense, profiles.own
    own_total, total, seconds, longest = 0.0, Runtime(), dict[Key, tuple[float, float]](), 0
    for line in lines:
        rows = rows_of(line)
        longest = max([longest, *(segment.queries - segment.padding for segments in rows for segment in segments)])
        runtime = _sum(profiles, shape, rows)
        # dense's layers have the windows of the method's
        dense = _sum(profiles, shape, (row_as_dense(row, [layer.window for layer in shape.layers]) for row in rows))
        seconds[key_of(line)] = runtime.total, dense.total
        total += runtime
        if own is not None:
            is_dense = own.id == profile.id
            own_total += runtime.total if is_dense else _sum(replace(profiles, dense=own), shape, rows).total
    section = costs.Ideal(
        profile=profile.id,
        label=profile.label_for(longest),
        clock=profile.clock,
        fit_error=profile.fitted_error,
        held_out_error=profile.held_out.mape,
        profile_s=profile.seconds,
        cut_short=profile.cut_short,
        ref_s=total.total / len(lines),
        own_s=None if own is None else own_total / len(lines),
        dense_s=sum(dense for _, dense in seconds.values()) / len(lines),
        own_label=None if own is None else own.label_for(longest),
        own_profile=None if own is None else own.id,
        speedup_error=profile.held_out.speedup_error,
        speedup_worst=profile.held_out.speedup_worst,
        added=profiles.added,
        growth=profile.growth,
        parts={name: value / len(lines) for name, value in total.parts().items()},
    )
    return of_requests(section, times, requests), seconds


def of_requests(section: costs.Ideal, times: RequestTimes | None, requests: Sequence[RequestLine]) -> costs.Ideal:
    """Idealized time with the numbers of these measured requests; without their ``times``, with none."""
    observed = [request["run"]["latency"] for request in requests]
    numbers = {"requests_s": times and times.typical, "overhead_ratio": times and times.overhead(observed)}
    return section.model_copy(update=numbers)


def priced_lines(lines: CostLines, times: RequestTimes | None) -> CostLines:
    """The lines with the idealized seconds of their requests; with none of requests that have no ``times``."""
    in_order = iter(times.seconds if times else ())
    return {key: _priced(line, in_order) for key, line in lines.items()}


def _priced(line: CostLine, seconds: Iterator[float]) -> CostLine:
    if "requests" not in line:
        return line
    requests = [request.copy() for request in line["requests"]]
    for request in requests:
        request.pop("ideal_s", None)
        if (ideal_s := next(seconds, None)) is not None:
            request["ideal_s"] = ideal_s
    return {**line, "requests": requests}


def idealized_lines(
    documents: Iterable[SampleLine],
    lines: CostLines,
    seconds: Mapping[Key, tuple[float, float]],
    times: RequestTimes | None,
) -> CostLines:
    """The lines of a run's costs with new idealized seconds of its documents and of its measured requests.

    Args:
        seconds: each document's, and those of dense on the same tokens.
    """
    idealized: CostLines = {}
    for document in documents:
        key = key_of(document)
        line = idealized[key] = modelled_line(document, *seconds[key])
        if key in lines and (requests := lines[key].get("requests")):
            line["requests"] = requests
    return priced_lines(idealized, times)


def rooflines(
    lines: Sequence[SampleLine],
    shape: ModelShape,
    machines: Iterable[tuple[Accelerator, float | None]],
    dtype: str,
    requests: Sequence[RequestLine],
) -> dict[str, costs.RooflineInfo]:
    """The least seconds per document on each machine, by its name.

    Args:
        machines: each with its price in US dollars per hour, if it has one.
        dtype: of the arithmetic, such as "bfloat16".
        requests: those that were measured on this host, which its bound may not exceed.
    """
    rows = [unpadded(segments) for line in lines for segments in rows_of(line)]
    sections = {}
    for machine, price in machines:
        bounds = [roofline(shape, segments, machine, dtype) for segments in rows]
        section = sections[machine.name] = _roofline_section(bounds, len(lines), machine, dtype, price)
        if machine.name == HOST:
            section.doubts = _beaten(requests, shape, machine, dtype)
    return sections


def checked(
    sections: Mapping[str, costs.RooflineInfo], requests: Sequence[RequestLine], shape: ModelShape
) -> dict[str, costs.RooflineInfo]:
    """Stored rooflines, this host's with the doubts of these measured requests."""
    section = sections.get(HOST)
    if section is None:
        return dict(sections)
    machine = measured_machine(HOST, section)
    doubts = [_NOT_CHECKED_PEAKS] if machine is None else _beaten(requests, shape, machine, section.dtype)
    return {**sections, HOST: section.model_copy(update={"doubts": doubts})}


def with_share(
    sections: Mapping[str, costs.RooflineInfo],
    modelled: costs.Ideal | None,
    requests: Sequence[RequestLine],
    shape: ModelShape,
    device: str,
) -> dict[str, costs.RooflineInfo]:
    """Rooflines, this host's with the share of it that the run reached on the device, and whether launching is why.

    Args:
        modelled: idealized time, which stands for a measured one where no requests were measured.
    """
    section = sections.get(HOST)
    if section is None:
        return dict(sections)
    share, share_of = None, None
    machine = measured_machine(HOST, section)
    if machine is not None and not section.doubts and requests:
        bounds = _bounds(requests, shape, machine, section.dtype)
        took = [float(np.median(request["run"]["latency"])) for request in requests]
        share, share_of = float(np.median([bound / time for bound, time in zip(bounds, took, strict=True)])), "measured"
    elif not section.doubts and modelled is not None and modelled.ref_s > 0:
        share, share_of = section.seconds / modelled.ref_s, "idealized"
    if share is None or not 0 < share <= 1:
        share = share_of = None
    is_bound = None
    if not device.startswith("cpu") and share is not None and modelled is not None and modelled.growth is not None:
        is_bound = share < costs.LAUNCH_BOUND[0] and modelled.growth < costs.LAUNCH_BOUND[1]
    update = {"share": share, "share_of": share_of, "launch_bound": is_bound}
    return {**sections, HOST: section.model_copy(update=update)}


def _bounds(requests: Sequence[RequestLine], shape: ModelShape, machine: Accelerator, dtype: str) -> list[float]:
    """The least seconds of each measured request."""
    traces = [[Segment.from_json(segment) for segment in request.get("segments", ())] for request in requests]
    return [roofline(shape, unpadded(segments), machine, dtype).total for segments in traces]


def measured_machine(name: str, section: costs.RooflineInfo) -> Accelerator | None:
    """The machine that ran it, by the peaks that were measured on it, which older runs did not keep."""
    if section.peak is None or section.bandwidth is None:
        return None
    peaks, source = {section.dtype: section.peak}, section.peaks_source
    return Accelerator(name=name, peaks=peaks, bandwidth=section.bandwidth, tdp=section.tdp, source=source)


def _beaten(requests: Sequence[RequestLine], shape: ModelShape, machine: Accelerator, dtype: str) -> list[str]:
    """Why this host's bound is none, or not known to be one: requests that took less, or whose traces are gone."""
    if not all(request.get("segments") for request in requests):
        return [_NOT_CHECKED]
    pairs = zip(requests, _bounds(requests, shape, machine, dtype), strict=True)
    shares = [min(request["run"]["latency"]) / bound for request, bound in pairs if bound]  # of the fastest round
    below = [share for share in shares if share < 1]
    if not below:
        return []
    beaten = f"{len(below)} of {len(shares)} measured requests took less, down to {min(below):.2f} of it"
    return [f"no bound: {beaten}; the machine reaches more than was measured, or the weights stay in its caches"]


def _roofline_section(
    bounds: Sequence[Bound], documents: int, machine: Accelerator, dtype: str, price: float | None
) -> costs.RooflineInfo:
    seconds = sum(bound.total for bound in bounds) / documents
    names = ("attention", "cache", "mlp", "head", "rest")
    return costs.RooflineInfo(
        seconds=seconds,
        dtype=dtype,
        parts={name: sum(getattr(bound, name) for bound in bounds) / documents for name in names},
        dollars=None if price is None else dollars(seconds, price),
        price_usd_per_hour=price,
        energy_bound_j=energy_bound(seconds, machine),
        peaks_source=machine.source,
        peak=machine.peak(dtype),
        bandwidth=machine.bandwidth,
        tdp=machine.tdp,
    )


def _sum(profiles: Profiles, shape: ModelShape, rows: Iterable[Iterable[Segment]]) -> Runtime:
    total = Runtime()
    for segments in rows:
        total += profiles.runtime(shape, segments)
    return total
