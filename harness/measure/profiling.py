"""Measure a model's cost profile on this host: an interleaved grid of depth, tokens and context, then the fit.

Every round visits all cells in a fresh random order, the held-out schedules among them, so that what the machine does
meanwhile falls on all alike; a cell's statistic is its minimum (its least disturbed timing).
"""

import hashlib
import json
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.core import environment
from harness.core.errors import MethodError
from harness.core.files import write_atomic
from harness.core.paths import cache_folder
from harness.measure.clock import clock_for
from harness.measure.conditions import Observer
from harness.measure.probe import Depths, Prober
from harness.measure.profile import CostProfile, HeldOut, Line, Work, fit_decode, fit_prefill, forward_seconds
from harness.measure.shape import ModelShape

if TYPE_CHECKING:
    from harness.core.progress import Bar

VERSION: Final = 1
"""Of the procedure: profiles made by another are measured again."""
LENGTHS: Final = (1, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS: Final = (16, 64, 256, 512)
ROUNDS, LEAST_ROUNDS, REPEATS = 6, 3, 3
SLOW_S: Final = 0.1
"""Cells that take longer are repeated once a round."""
BUDGET_S: Final = 150.0
SCHEDULES, STEPS = 8, 8


@dataclass
class _Cell:
    """Something timed again and again."""

    run: Callable[[int], list[float]]
    samples: list[float] = field(default_factory=list)

    def visit(self) -> None:
        """One visit of a round: the first timing warms caches and is dropped."""
        slow = bool(self.samples) and min(self.samples) > SLOW_S
        self.samples += self.run(1 + (1 if slow else REPEATS))[1:]

    @property
    def best(self) -> float:
        return max(min(self.samples), 1e-9)


@dataclass
class _Schedule:
    context: int
    depths: list[Depths]
    cell: _Cell


def profile_key(model: Decoder, own: str = "") -> str:
    """What a profile holds for: shape, data type, attention implementation, host, versions.

    ``own`` is the fingerprint of the method whose modules are in place; empty for the dense model.
    """
    shape = ModelShape.of(model).model_dump(mode="json")
    kind = [model.module.config.model_type, str(model.module.dtype), model.module.config._attn_implementation]
    plain = json.dumps([VERSION, own, shape, kind, host(model)], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def host(model: Decoder) -> dict[str, str]:
    """The fingerprint of this machine and its software."""
    here = environment.observe(str(model.device))
    names = {name: here.versions[name] for name in ("torch", "transformers")}
    return {"device": here.device_name, "cpus": str(here.cpus), "threads": str(here.threads), **names} | {
        "machine": platform.machine(),
        "clock": clock_for(model.device),
    }


def stored_profile(model: Decoder, own: str = "") -> CostProfile | None:
    """The profile of this model on this host, if it was measured before."""
    try:
        return CostProfile.model_validate_json(_path(profile_key(model, own)).read_bytes())
    except (OSError, ValueError):
        return None


def measure_profile(model: Decoder, bar: "Bar", *, own: str = "", seed: int = 0) -> CostProfile:
    """Time the grid, fit it, and keep the profile in the user's cache.

    Raises:
        MethodError: the model as it stands cannot be run at other depths.
    """
    began, observer = time.perf_counter(), Observer()
    prober = Prober(model, clock_for(model.device), seed)
    longest = getattr(model.config, "max_position_embeddings", LENGTHS[-1])
    prefill = _prefill_cells(prober, longest)
    decode = _decode_cells(prober, longest)
    schedules = _schedules(prober, random.Random(seed), longest)
    parts = _part_cells(prober)
    cells = [cell for _, cell in prefill + decode] + [one.cell for one in schedules]
    cells += [cell for group in parts.values() for _, cell in group]
    _visit_all(cells, random.Random(seed + 1), bar, began)
    conditions = observer.conditions()
    decode_costs, decode_fit = fit_decode(*_measured(decode))
    prefill_costs, prefill_fit = fit_prefill(*_measured(prefill), decode_costs.attention_pair)
    lines = {
        name: Line.fit([size for size, _ in group], [cell.best for _, cell in group]) for name, group in parts.items()
    }
    spread = [np.subtract(*np.quantile(cell.samples, [0.75, 0.25])) / np.median(cell.samples) for cell in cells]
    profile = CostProfile(
        key=profile_key(model, own),
        host=host(model),
        layers=len(prober.live),
        clock=prober.clock,
        prefill=prefill_costs,
        decode=decode_costs,
        **lines,
        prefill_fit=prefill_fit,
        decode_fit=decode_fit,
        held_out=_held_out(schedules, [forward_seconds(decode_costs, work) for work in _works(schedules)]),
        relative_iqr=float(np.median(spread)),
        others_share=conditions.others_share,
        load_average=(conditions.load_before, conditions.load_after),
        seconds=round(time.perf_counter() - began, 1),
    )
    write_atomic(_path(profile.key), profile.model_dump_json(indent=2) + "\n")
    return profile


def _path(key: str) -> Path:
    return cache_folder() / "profiles" / f"{key}.json"


def _visit_all(cells: Sequence[_Cell], order: random.Random, bar: "Bar", began: float) -> None:
    bar.expect(ROUNDS * len(cells))
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > BUDGET_S:
            bar.advance((ROUNDS - done) * len(cells))
            return
        for cell in order.sample(cells, len(cells)):
            cell.visit()
            bar.advance(1)


def _depths(prober: Prober) -> list[Depths]:
    """A third, two thirds and all of the layers, and one alone; then half without a branch."""
    live = prober.live
    sizes = sorted({max(1, round(len(live) * share)) for share in (0, 1 / 3, 2 / 3, 1)})
    evenly = [tuple(live[round(i * (len(live) - 1) / max(size - 1, 1))] for i in range(size)) for size in sizes]
    half = live[1::2]
    branches = [Depths(live, no_attention=half), Depths(live, no_mlp=half)] if half else []
    return [depths for depths in [*map(Depths, evenly), *branches] if _possible(prober, depths)]


def _possible(prober: Prober, depths: Depths) -> bool:
    """Whether the model can be run so: a cache needs an attention of each kind."""
    if len(depths.blocks) == len(prober.live) and not depths.no_attention and not depths.no_mlp:
        return True
    try:
        with prober.at(depths):
            return True
    except MethodError:
        return False


def _work(prober: Prober, n: int, c: int, depths: Depths, rows: int = 1) -> Work:
    attention = len(set(depths.blocks) - set(depths.no_attention))
    work = Work(n, c, attention, len(set(depths.blocks) - set(depths.no_mlp)), rows)
    return Work(n, c, work.attention, work.mlp, prober.rows(work))


def _prefill_cells(prober: Prober, longest: int) -> list[tuple[Work, _Cell]]:
    """Prompts of every length at every depth, the whole text scored at the least and the greatest depth."""
    depths = _depths(prober)
    whole = Depths(prober.live)
    cells = []
    for n in LENGTHS:
        if n <= longest:
            chosen = [(_work(prober, n, n, one), one) for one in depths]
            if n > 1:
                chosen += [(_work(prober, n, n, one, n), one) for one in (depths[0], whole)]
            cells += [(work, _forward_cell(prober, work, one)) for work, one in chosen]
    return cells


def _decode_cells(prober: Prober, longest: int) -> list[tuple[Work, _Cell]]:
    works = [(_work(prober, 1, c, one), one) for c in CONTEXTS if c < longest for one in _depths(prober)]
    return [(work, _forward_cell(prober, work, one)) for work, one in works]


def _forward_cell(prober: Prober, work: Work, depths: Depths) -> _Cell:
    return _Cell(lambda times: prober.forward(work, depths, times))


def _part_cells(prober: Prober) -> dict[str, list[tuple[int, _Cell]]]:
    """Calls of the head alone, of a key-value projection, and of small linear maps, by tokens (multiplications)."""
    module, shape = prober.model.module, ModelShape.of(prober.model)
    head = cast("nn.Module", module.get_output_embeddings())
    width = cast("torch.Tensor", prober.model.anatomy.embedding.weight).shape[1]
    reads = getattr(head, "in_features", width)

    def linear(outputs: int) -> nn.Linear:
        return nn.Linear(width, outputs, bias=False).to(module.device, module.dtype)

    def cell(part: nn.Module, inputs: int, tokens: int) -> _Cell:
        return _Cell(lambda times: prober.module(part, inputs, tokens, times))

    fill = linear(2 * shape.layers[0].kv_width)
    return {
        "head": [(tokens, cell(head, reads, tokens)) for tokens in (1, 4, 16)],
        "fill": [(tokens, cell(fill, width, tokens)) for tokens in (1, 16, 64)],
        "router": [(width * outputs, cell(linear(outputs), width, 1)) for outputs in (8, 64, 512)],
    }


def _schedules(prober: Prober, draw: random.Random, longest: int) -> list[_Schedule]:
    """Decode steps at random depths, and at full depth, at contexts that the grid does not have."""
    made = []
    contexts = [c for c in (40, 160) if c < longest] or [2]
    for context in contexts:
        plans = [[Depths(prober.live)] * STEPS]
        plans += [[_random_depths(prober, draw) for _ in range(STEPS)] for _ in range(SCHEDULES // len(contexts))]
        made += [_Schedule(context, plan, _steps_cell(prober, context, plan)) for plan in plans]
    return made


def _steps_cell(prober: Prober, context: int, plan: list[Depths]) -> _Cell:
    return _Cell(lambda times: [prober.steps(context, plan) for _ in range(times)])


def _random_depths(prober: Prober, draw: random.Random) -> Depths:
    kept = draw.sample(prober.live, draw.randint(max(1, len(prober.live) // 4), len(prober.live)))
    depths = Depths(tuple(sorted(kept)))
    return depths if _possible(prober, depths) else Depths(prober.live)


def _works(schedules: Sequence[_Schedule]) -> list[Work]:
    return [Work(1, one.context, len(depths.blocks), len(depths.blocks)) for one in schedules for depths in one.depths]


def _held_out(schedules: Sequence[_Schedule], step_seconds: Sequence[float]) -> HeldOut:
    """Compare the schedules' times with the sums of their predicted steps."""
    predicted = np.array(step_seconds).reshape(len(schedules), -1).sum(axis=1)
    timed = np.array([one.cell.best for one in schedules])
    errors = predicted / timed - 1
    speedups = []
    for index, one in enumerate(schedules):
        whole = next(i for i, other in enumerate(schedules) if other.context == one.context)  # full depth comes first
        if index != whole:
            speedups.append((predicted[whole] / predicted[index]) / (timed[whole] / timed[index]) - 1)
    return HeldOut(
        schedules=len(schedules),
        mape=float(np.abs(errors).mean()),
        bias=float(errors.mean()),
        speedup_error=float(np.abs(speedups).mean()),
        speedup_worst=float(np.abs(speedups).max()),
    )


def _measured(cells: Sequence[tuple[Work, _Cell]]) -> tuple[list[Work], list[float]]:
    return [work for work, _ in cells], [cell.best for _, cell in cells]
