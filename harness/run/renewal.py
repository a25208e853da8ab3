"""Make sections of a finished record anew whose computing source has changed, from what is stored, without a model."""

from contextlib import suppress
from dataclasses import replace

from pydantic import ValidationError

from harness.core.errors import DiskError, StoreError, TraceError, UnknownNameError
from harness.measure.accelerators import Accelerator, accelerator, names
from harness.measure.energy import attribute
from harness.measure.profiles import measured_profile
from harness.measure.shape import ModelShape
from harness.results import costs
from harness.results.compare import StoredRun, compared
from harness.results.cost_lines import requests_of
from harness.results.intervals import with_intervals
from harness.results.record import RunRecord
from harness.results.samples import SampleLine
from harness.results.sources import ComputedSection, digest, stale
from harness.results.store import RunFolder, Store
from harness.run.modelled import (
    Profiles,
    RequestTimes,
    ideal,
    idealized_lines,
    measured_machine,
    rooflines,
    rows_of,
    stored_times,
    with_share,
)


def renew_stored(store: Store, folder: RunFolder) -> None:
    """Renew a run for looking at it, and the dense run that it is compared with, as far as that is possible."""
    with suppress(StoreError, DiskError):
        baseline = folder.record().baseline
        dense = None
        if baseline is not None:
            with suppress(UnknownNameError):
                dense = store.find(baseline.run_id)
                renew(dense, None)
        renew(folder, dense)


def renew(folder: RunFolder, dense: RunFolder | None) -> RunRecord:
    """A finished run's record with every section by the source of today; its id stays, and no model is run.

    A packed run stays as it was published. Modelled times stay as they are where this machine no longer has the cost
    profile that they were made with.

    Args:
        dense: the dense run of the same documents, renewed already; None if there is none.

    Raises:
        StoreError: the run, or the dense run, cannot be read.
    """
    record = folder.record()
    sections = stale(record)
    is_compared = dense is None or record.baseline is not None
    if folder.packed or (is_compared and not sections - ({"baseline"} if dense is None else set())):
        return record
    stored = run = StoredRun.read(folder)
    if "scores" in sections:
        run = _sourced(run, "scores", scores=with_intervals(record.scores, list(run.samples.values())))
    if sections & {"time.ideal", "time.roofline"}:
        run = _remodelled(folder, run)
    if run.costs is not stored.costs:
        folder.write_costs(run.costs.values())
    record = run.record if dense is None else compared(run, dense)
    folder.rewrite(record)
    return record


def _sourced(run: StoredRun, *names: ComputedSection, **sections: object) -> StoredRun:
    """The run with some sections of its record made by the source of today."""
    sources = run.record.sources | {name: digest(name) for name in names}
    return replace(run, record=run.record.model_copy(update={**sections, "sources": sources}))


def _remodelled(folder: RunFolder, run: StoredRun) -> StoredRun:
    """The run with its idealized times and rooflines made anew, if all of them can be."""
    time = run.record.time
    assert time is not None
    profiles, machines = stored_profiles(time.ideal), _machines(time.roofline)
    try:
        shape = ModelShape.model_validate(folder.manifest().get("shape"))
    except ValidationError:
        return run
    lines = list(run.samples.values())
    if time.ideal is None or profiles is None or machines is None or not all("rows" in line for line in lines):
        return run
    if profiles.added is None and any(map(adds, lines)):
        return run  # of an older run, which did not measure what its method adds to the layers
    requests = requests_of(run.costs.values())
    try:
        times = stored_times(requests, profiles, shape)
        section, seconds = ideal(lines, shape, profiles, times, requests)
    except TraceError:
        return run
    bounds = rooflines(lines, shape, machines, run.record.model.dtype, requests)
    bounds = with_share(bounds, section, requests, shape, run.record.environment.device)
    new_time = time.model_copy(update={"ideal": section, "roofline": bounds})
    remodelled = _sourced(run, "time.ideal", "time.roofline", time=new_time, energy=_attributed(run, times))
    return replace(remodelled, costs=idealized_lines(lines, run.costs, seconds, times))


def adds(line: SampleLine) -> bool:
    """Whether a method added work to the layers for a document, or checked exits."""
    return any(segment.extra or segment.checks for segments in rows_of(line) for segment in segments)


def stored_profiles(section: costs.Ideal | None) -> Profiles | None:
    """The profiles that idealized times were made with, if this machine still has them."""
    if section is None or (dense := measured_profile(section.profile)) is None:
        return None
    if section.own_profile is None:
        return Profiles(dense, None, section.added) if section.own_s is None else None
    own = measured_profile(section.own_profile)
    return None if own is None else Profiles(dense, own, section.added)


def _machines(sections: dict[str, costs.RooflineInfo]) -> list[tuple[Accelerator, float | None]] | None:
    """The machines of rooflines, at the prices that they had; None if what one of them reaches is not known."""
    machines = []
    for name, section in sections.items():
        machine = accelerator(name) if name in names() else measured_machine(name, section)
        if machine is None:
            return None
        machines.append((machine, section.price_usd_per_hour))
    return machines


def _attributed(run: StoredRun, times: RequestTimes | None) -> costs.Energy | None:
    """The energy, of which each request has its share by idealized seconds."""
    section = run.record.energy
    if section is None or times is None or len(section.requests_j) != len(times.seconds):
        return section
    joules = attribute(sum(section.requests_j), times.seconds)
    return section.model_copy(update={"requests_j": joules, "prefill_share": times.prefill_share})
