"""Costs by arithmetic on stored traces: idealized time and rooflines of a run's documents. Needs no model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.measure.accelerators import Accelerator
from harness.measure.ideal import Runtime, ideal_runtime
from harness.measure.profile import CostProfile
from harness.measure.roofline import Bound, dollars, energy_bound, roofline
from harness.measure.segment import Segment, unpadded
from harness.measure.shape import ModelShape
from harness.results import costs
from harness.results.samples import Key, SampleLine, key_of


@dataclass(frozen=True)
class Profiles:
    """The costs that a run's layers are charged with.

    Attributes:
        dense: of dense layers, on this host.
        own: of the modules that the method put in place, which are dense's where they cost the same; None where they
            could not be profiled.
    """

    dense: CostProfile
    own: CostProfile | None


@dataclass(frozen=True)
class RequestTimes:
    """Idealized seconds of requests that were served under observation, [requests], and of reading their prompts."""

    seconds: list[float]
    reading: list[float]

    @property
    def prefill_share(self) -> float:
        """Share of the idealized time that reading takes."""
        return sum(self.reading) / sum(self.seconds)

    def overhead(self, observed: Sequence[Sequence[float]]) -> float:
        """Observed over idealized seconds: the median over requests, of the median of [requests][rounds]."""
        ratios = [float(np.median(rounds)) / ideal for rounds, ideal in zip(observed, self.seconds, strict=True)]
        return float(np.median(ratios))


def rows_of(line: SampleLine) -> list[list[Segment]]:
    """The trace of every row of a document."""
    return [[Segment.from_json(segment) for segment in row["segments"]] for row in line.get("rows", ())]


def request_times(profile: CostProfile, shape: ModelShape, traces: Iterable[Sequence[Segment]]) -> RequestTimes:
    """Idealized seconds of requests by their traces."""
    seconds, reading = list[float](), list[float]()
    for segments in traces:
        seconds.append(ideal_runtime(profile, shape, segments).total)
        read = [segment for segment in segments if segment.phase != "decode"]
        reading.append(ideal_runtime(profile, shape, read).total)
    return RequestTimes(seconds, reading)


def ideal(
    lines: Sequence[SampleLine], shape: ModelShape, profiles: Profiles, overhead: float | None
) -> tuple[costs.Ideal, dict[Key, float]]:
    """Idealized time: the record's section, and each document's seconds.

    Args:
        lines: the documents, with their traces.
        shape: the attached model's.
        overhead: observed over idealized seconds of the cost pass's requests.
    """
    profile, own = profiles.dense, profiles.own
    own_total, total, seconds, longest = 0.0, Runtime(), {}, 0
    for line in lines:
        rows = rows_of(line)
        longest = max([longest, *(segment.queries - segment.padding for segments in rows for segment in segments)])
        runtime = _sum(profile, shape, rows)
        seconds[key_of(line)] = runtime.total
        total += runtime
        if own is not None:
            own_total += runtime.total if own.id == profile.id else _sum(own, shape, rows).total
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
        own_label=None if own is None else own.label_for(longest),
        own_profile=None if own is None else own.id,
        parts={name: value / len(lines) for name, value in total.parts().items()},
        overhead_ratio=overhead,
    )
    return section, seconds


def rooflines(
    lines: Sequence[SampleLine], shape: ModelShape, machines: Iterable[tuple[Accelerator, float | None]], dtype: str
) -> dict[str, costs.RooflineInfo]:
    """The least seconds per document on each machine, by its name.

    Args:
        machines: each with its price in US dollars per hour, if it has one.
        dtype: of the arithmetic, such as "bfloat16".
    """
    rows = [unpadded(segments) for line in lines for segments in rows_of(line)]
    sections = {}
    for machine, price in machines:
        bounds = [roofline(shape, segments, machine, dtype) for segments in rows]
        sections[machine.name] = _roofline_section(bounds, len(lines), machine, dtype, price)
    return sections


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


def _sum(profile: CostProfile, shape: ModelShape, rows: Iterable[Iterable[Segment]]) -> Runtime:
    total = Runtime()
    for segments in rows:
        total += ideal_runtime(profile, shape, segments)
    return total
