"""Energy of requests: windows of many, dense and the method taking turns, idle power measured before and after."""

import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from harness.measure.meters import Meter, why_no_counter, why_not_measured
from harness.results.costs import Energy, EnergyPart, Provenance, counted_parts

WINDOW_S: Final = 10.0
"""Least seconds of a window that is trusted: counters are updated every 1 to 100 ms, estimates every second."""
ROUNDS: Final = 3
"""Least windows that are trusted."""
TRUST: Final[tuple[Provenance, ...]] = (
    "none",
    "modeled",
    "estimated_constant",
    "estimated_load_tdp",
    "measured_power_sampled",
    "measured_counter",
)
"""From the least to the most."""
WORDS: Final[dict[Provenance, str]] = {
    "estimated_constant": "constant power x time",
    "estimated_load_tdp": "processor load x nominal power",
    "measured_power_sampled": "power sampled by the device and added up",
    "measured_counter": "read from hardware counters",
    "none": "nothing could be read",
}


class Windows(BaseModel):
    """How energy is measured.

    Attributes:
        window_s: least seconds of a busy window; ``idle_s`` of each of the two idle ones.
        cooldown_s: seconds of rest after a busy window.
        rounds: busy windows of each participant.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_s: float = Field(default=WINDOW_S, gt=0)
    idle_s: float = Field(default=10.0, gt=0)
    cooldown_s: float = Field(default=5.0, ge=0)
    rounds: int = Field(default=ROUNDS, ge=1)

    def seconds(self, participants: int) -> float:
        """How long measuring so many participants takes."""
        return self.rounds * participants * (self.window_s + self.cooldown_s) + 2 * self.idle_s


@dataclass(frozen=True)
class Window:
    """Energy of one window.

    Attributes:
        parts: joules of the whole window by component.
        requests: requests that it held; 0 for an idle one.
    """

    seconds: float
    parts: dict[str, EnergyPart]
    requests: int


@dataclass
class WindowMeter:
    """Opens all meters together.

    Attributes:
        plan: how long windows are.
        clock, sleep: so that tests need not wait.
    """

    meters: Sequence[Meter]
    plan: Windows = field(default_factory=Windows)
    clock: Callable[[], float] = field(default=time.perf_counter)
    sleep: Callable[[float], None] = field(default=time.sleep)

    def busy(self, work: Callable[[], int]) -> Window:
        """Run ``work``, which returns its number of requests, until the window is long enough."""
        for meter in self.meters:
            meter.begin()
        began, requests = self.clock(), 0
        while self.clock() - began < self.plan.window_s:
            requests += work()
        return Window(self.clock() - began, self._read(), requests)

    def idle(self) -> Window:
        """Do nothing for as long."""
        for meter in self.meters:
            meter.begin()
        began = self.clock()
        self.sleep(self.plan.idle_s)
        return Window(self.clock() - began, self._read(), 0)

    def cool_down(self) -> None:
        """Rest between windows, so that one does not heat the next."""
        self.sleep(self.plan.cooldown_s)

    def _read(self) -> dict[str, EnergyPart]:
        parts: dict[str, EnergyPart] = {}
        for meter in self.meters:
            parts |= meter.end()
        return parts


def energy(
    windows: Sequence[Window],
    idle: Sequence[Window],
    *,
    others_share: float,
    prefill_share: float | None = None,
    weights: Sequence[float] = (),
    intensity_g_per_kwh: float | None = None,
) -> Energy:
    """Energy per request of a method's windows.

    Args:
        windows: busy ones; ``idle`` the idle ones around them.
        others_share: share of the machine that other processes used meanwhile.
        prefill_share: share of the idealized time that reading prompts takes.
        weights: idealized seconds of each request, in proportion to which energy is attributed; none if unknown.
        intensity_g_per_kwh: grams of CO2 for a kilowatt-hour, if the user wants them.
    """
    names = sorted({name for window in windows for name in window.parts})
    requests = sum(window.requests for window in windows)
    parts = {name: _part(name, windows, requests) for name in names}
    counted = counted_parts(parts)
    known = [part.joules for part in counted.values() if part.joules is not None]
    # without the GPU that did the work, the others' joules would be too few
    is_whole = "gpu" not in parts or parts["gpu"].joules is not None
    total = sum(known) if known and is_whole else None
    label = _label(counted, total)
    measured = total if label.startswith("measured") else None
    busy_j, idle_w = sum(_joules(window, counted) for window in windows), _watts(idle, counted)
    seconds = sum(window.seconds for window in windows)
    active = None if total is None or idle_w is None else total - idle_w * seconds / requests
    result = Energy(
        measured_j=measured,
        estimated_j=None if measured is not None else total,
        active_j=active,
        idle_w=idle_w,
        busy_w=busy_j / seconds if known else None,
        parts=parts,
        label=label,
        note="",
        windows=len(windows),
        window_s=seconds / len(windows),
        raw=[_joules(window, counted) / window.requests for window in windows] if is_whole else [],
        prefill_share=prefill_share,
        requests_j=attribute(total * len(weights), weights) if total is not None and weights else [],
        co2_kg=None if total is None or intensity_g_per_kwh is None else total / 3.6e6 * intensity_g_per_kwh / 1e3,
        intensity_g_per_kwh=intensity_g_per_kwh,
        doubts=_doubts(windows, busy_j / seconds, idle_w, others_share, label),
    )
    return result.model_copy(update={"note": _note(result)})


def missing_reason(result: Energy, device: str = "cpu") -> str | None:
    """Why there are no measured joules of work on a device, such as "cuda:0"; None if there are."""
    if result.measured_j is not None:
        return None
    if (reason := _without_gpu(result, device)) is not None:
        return f"{reason}. {result.note}"
    processor = result.parts.get("cpu")
    if processor is not None and processor.provenance.startswith("measured"):
        uncounted = [name for name, part in result.parts.items() if not part.provenance.startswith("measured")]
        return f"no counter for {', '.join(uncounted)}. {result.note}"
    return f"{why_not_measured()}. {result.note}"


def _without_gpu(result: Energy, device: str) -> str | None:
    """Why a GPU's joules are not among those that were read; None where they are, or where no GPU did the work."""
    if device == "cpu" or ("gpu" in result.parts and result.parts["gpu"].joules is not None):
        return None
    import torch

    return why_no_counter(torch.device(device)) or f"the counter of {device} was not read in every window"


def _note(result: Energy) -> str:
    """What the joules are made of, in words: of an estimate with the share of each kind, the largest first."""
    if result.measured_j is not None:
        return f"{WORDS[result.label]}{_beside(result.parts)}"
    if result.estimated_j is None:
        return WORDS[result.label]
    if result.is_clock:
        return f"estimated: {WORDS['estimated_constant']}; not a measurement, and no ratio is made of it"
    kinds: dict[Provenance, dict[str, float]] = {}
    for name, part in result.parts.items():
        if part.joules:
            kinds.setdefault(part.provenance, {})[name] = part.joules
    largest = sorted(kinds.items(), key=lambda kind: -sum(kind[1].values()))
    shares = [
        f"{sum(parts.values()) / result.estimated_j:.0%} {WORDS[kind]} ({', '.join(parts)})" for kind, parts in largest
    ]
    return f"estimated, not a measurement: {', '.join(shares)}"


def attribute(joules: float, weights: Sequence[float]) -> list[float]:
    """Joules of each request, [requests]: their sum in proportion to idealized seconds, ``weights`` [requests]."""
    total = sum(weights)
    return [joules * weight / total for weight in weights]


def _part(name: str, windows: Sequence[Window], requests: int) -> EnergyPart:
    """A component over all windows: null if one of them lacks it, and only as trusted as its least trusted window."""
    parts = [window.parts.get(name) for window in windows]
    joules = [None if part is None else part.joules for part in parts]
    weakest = min((part for part in parts if part is not None), key=lambda part: TRUST.index(part.provenance))
    if any(value is None for value in joules):
        return weakest.model_copy(update={"joules": None, "provenance": "none"})
    return weakest.model_copy(update={"joules": sum(value for value in joules if value is not None) / requests})


def _beside(parts: dict[str, EnergyPart]) -> str:
    """The estimates that stand beside what counters read, in words."""
    counted = counted_parts(parts)
    if len(counted) == len(parts):
        return ""
    beside = [
        f"{name} {'unknown' if part.joules is None else f'{part.joules:.3g} J, {WORDS[part.provenance]}'}"
        for name, part in parts.items()
        if name not in counted
    ]
    return f" ({', '.join(counted)}); beside it and not added: {'; '.join(beside)}"


def _label(parts: dict[str, EnergyPart], total: float | None) -> Provenance:
    """The least trusted of the components that matter; a component that could not be read always matters."""
    mattering = [p.provenance for p in parts.values() if p.joules is None or p.joules >= 0.05 * (total or 0.0)]
    return min(mattering, key=TRUST.index, default="none")


def _joules(window: Window, names: Container[str]) -> float:
    """Joules of a window's components of these names."""
    return sum(part.joules or 0.0 for name, part in window.parts.items() if name in names)


def _watts(idle: Sequence[Window], names: Container[str]) -> float | None:
    return float(np.mean([_joules(window, names) / window.seconds for window in idle])) if idle else None


def _doubts(
    windows: Sequence[Window], busy_w: float, idle_w: float | None, others_share: float, label: Provenance
) -> list[str]:
    doubts = []
    if min(window.seconds for window in windows) < WINDOW_S:
        doubts.append(f"a window was shorter than {WINDOW_S:.0f} s")
    if idle_w is not None and busy_w < 0.5 * idle_w:
        doubts.append("working took less than half the power of idling: the meter cannot be right")
    if others_share > 0.1 and label.startswith("measured"):
        doubts.append(f"other processes used {others_share:.0%} of the machine, and their energy is counted too")
    return doubts
