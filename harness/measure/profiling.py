"""Measure a model's cost profile on this host: an interleaved grid of depth, tokens and context, then the fit.

Cells are visited in random orders, the held-out schedules among them, so that machine noise affects all of them
equally; a cell's statistic is its minimum (its least disturbed timing).
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from harness.contract.decoder import Decoder
from harness.measure.cells import LENGTHS, Grid, Schedule
from harness.measure.clock import clock_for, current
from harness.measure.conditions import Observer
from harness.measure.modules import host, profile_key
from harness.measure.probe import Prober
from harness.measure.profile import (
    CostProfile,
    Costs,
    Fit,
    HeldOut,
    Line,
    LinearCosts,
    fit_decode,
    fit_prefill,
    forward_seconds,
    label_of,
)
from harness.measure.profiles import keep_profile
from harness.measure.rounds import Cell, time_cells

if TYPE_CHECKING:
    from harness.core.progress import Bar

_What = TypeVar("_What")
LEAST_BUDGET_S: Final = 10.0
MOST_BUDGET_S: Final = 60.0
BUDGET_SHARE: Final = 0.2


def default_budget(quality_s: float) -> float:
    """Seconds for a profile beside an evaluation of so many: a fifth, at least 10 and at most 60."""
    return min(max(BUDGET_SHARE * quality_s, LEAST_BUDGET_S), MOST_BUDGET_S)


def measure_profile(model: Decoder, bar: "Bar", budget_s: float = MOST_BUDGET_S, *, seed: int = 0) -> CostProfile:
    """Time the grid until the fit is good or the budget is spent, and keep the profile in the user's cache.

    A slow model may take longer: some twenty forwards of at most 16 tokens are timed once in any case.

    Raises:
        MethodError: the model as it stands cannot be run at other depths.
    """
    observer = Observer(model.device)
    prober = Prober(model, clock_for(model.device), seed)
    grid = Grid.of(prober, getattr(model.config, "max_position_embeddings", LENGTHS[-1]), seed)
    with current(model.device):
        timing = time_cells(grid.cells, budget_s, lambda: _is_good(grid), bar, seed=seed + 1)
    conditions = observer.conditions()
    prefill, prefill_fit, decode, decode_fit = _fits(grid)
    schedules = held_out(grid.schedules, decode)
    label = label_of(max(prefill_fit.mape, decode_fit.mape), schedules, complete=timing.complete)
    profile = CostProfile(
        key=profile_key(model),
        host=host(model),
        layers=len(prober.live),
        clock=prober.clock,
        prefill=prefill,
        decode=decode,
        **{name: Line.fit(*_timed(group)) for name, group in grid.parts.items()},
        prefill_fit=prefill_fit,
        decode_fit=decode_fit,
        held_out=schedules,
        relative_iqr=float(np.median([_relative_iqr(cell.samples) for cell in grid.cells if cell.samples])),
        others_share=conditions.others_share,
        load_average=(conditions.load_before, conditions.load_after),
        seconds=timing.seconds,
        budget_s=budget_s,
        rounds=timing.rounds,
        cut_short=timing.cut_short and label != "good",
        complete=timing.complete,
        longest=max(work.n for work, _ in grid.timed_prefill),
        windows=tuple(window for index in prober.live if (window := prober.windows[index]) is not None),
    )
    keep_profile(profile)
    return profile


def held_out(schedules: Sequence[Schedule], decode: LinearCosts) -> HeldOut:
    """Compare the timed schedules with the sums of their predicted steps."""
    timed = [schedule for schedule in schedules if schedule.cell.samples]
    over = {id(schedule): _predicted(schedule, decode) / schedule.cell.best for schedule in timed}
    errors = np.array(list(over.values())) - 1  # [schedules]
    full = {schedule.context: over[id(schedule)] for schedule in timed if schedule.is_full}
    speedups = [
        full[schedule.context] / over[id(schedule)] - 1
        for schedule in timed
        if not schedule.is_full and schedule.context in full
    ]
    return HeldOut(
        schedules=len(timed),
        mape=float(np.abs(errors).mean()),
        bias=float(errors.mean()),
        speedup_error=float(np.abs(speedups).mean()),
        speedup_worst=float(np.abs(speedups).max()),
    )


def _predicted(schedule: Schedule, decode: LinearCosts) -> float:
    """Seconds of all decode steps of a schedule."""
    return sum(forward_seconds(decode, work) for work in schedule.works)


def _is_good(grid: Grid) -> bool:
    _, prefill_fit, decode, decode_fit = _fits(grid)
    fitted = max(prefill_fit.mape, decode_fit.mape)
    return label_of(fitted, held_out(grid.schedules, decode), complete=True) == "good"


def _fits(grid: Grid) -> tuple[Costs, Fit, LinearCosts, Fit]:
    """The costs of reading and of writing, each with how well they fit."""
    decode, decode_fit = fit_decode(*_timed(grid.decode))
    return *fit_prefill(*_timed(grid.timed_prefill), decode.attention_pair), decode, decode_fit


def _timed(cells: Sequence[tuple[_What, Cell]]) -> tuple[list[_What], list[float]]:
    """What was timed, with its seconds; cells that the budget left out are not there."""
    timed = [(what, cell.best) for what, cell in cells if cell.samples]
    return [what for what, _ in timed], [seconds for _, seconds in timed]


def _relative_iqr(samples: Sequence[float]) -> float:
    low, middle, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return float((high - low) / middle) if middle else math.nan
