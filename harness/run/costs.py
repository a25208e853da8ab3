"""After the scores: work out and measure the costs of a task's runs, and complete their records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.errors import HarnessError, MethodError
from harness.measure.accelerators import HOST, Accelerator, accelerator, prices
from harness.measure.ideal import Runtime, ideal_runtime
from harness.measure.profile import CostProfile
from harness.measure.profiling import measure_profile, stored_profile
from harness.measure.roofline import dollars, energy_bound, roofline
from harness.measure.segment import Segment, unpadded
from harness.measure.shape import ModelShape
from harness.measure.this_host import this_host
from harness.measure.trace import Tracer
from harness.results import costs
from harness.results.compare import Line, compared, ratio_info
from harness.results.record import MISSING, RunRecord
from harness.results.stats.ratio import paired_ratio
from harness.results.store import RunFolder
from harness.run.measured import AGAIN, CostPass, kv_of, missing_energy, run_name
from harness.run.spec import RunSpec

if TYPE_CHECKING:
    from harness.run.session import Session


@dataclass
class _Run:
    """A finished run of the task, being completed."""

    spec: RunSpec
    folder: RunFolder
    record: RunRecord
    lines: list[Line]
    time: costs.Time = field(default_factory=costs.Time)

    @property
    def name(self) -> str:
        return run_name(self.spec)

    @property
    def pending(self) -> bool:
        """Whether something that was asked for has not been measured so."""
        record, plan = self.record, self.spec.job.costs
        time = record.time or costs.Time()
        done = {
            "flops": True,
            "ideal": time.ideal is not None and set(plan.accelerators) <= time.roofline.keys(),
            "latency": time.latency is not None and _same_settings(time.settings, self.spec),
            "memory": record.missing.get("memory.peak") != MISSING["memory.peak"],
            "energy": record.energy is not None,
        }
        return not all(done[what] for what in plan.measure) or (plan.measure > {"flops"} and not self.spec.job.resume)


def measure_costs(session: "Session", specs: Sequence[RunSpec]) -> None:
    """Complete the records of a task's runs; those that have their costs already stay as they are.

    Dense is measured again beside every new method, so that no time is compared across sessions; its own finished
    record is kept.
    """
    runs = [_load(spec, session.folder(spec)) for spec in specs]
    pending = [run for run in runs if run.pending]
    if not pending:
        return
    taking_part = [run for run in runs if run in pending or run.spec.stack.is_dense]
    stage = _Stage(session, taking_part)
    stage.carry_out()
    dense = next((run for run in taking_part if run.spec.stack.is_dense), None)
    for run in pending:
        record = stage.completed(run)
        run.folder.write_samples(run.lines)
        if dense is not None and run is not dense:
            record = compared(record, run.lines, dense.folder)
        run.folder.rewrite(record)


@dataclass
class _Stage:
    session: "Session"
    runs: list[_Run]
    memory: dict[str, costs.Memory] = field(default_factory=dict)
    energy: dict[str, costs.Energy] = field(default_factory=dict)
    prefill_shares: dict[str, float | None] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        job, first = self.session.job, self.runs[0]
        self.plan = job.costs
        self.cost_pass = CostPass(
            self.session.lm,
            [run.spec for run in self.runs],
            first.lines,
            self.session.attached,
            self.session.progress,
            isolated=job.costs.isolate,
        )

    def carry_out(self) -> None:
        """Idealized first, which is arithmetic once the profile is there; then the passes, one kind at a time."""
        measure = self.plan.measure
        if "ideal" in measure:
            for run in self.runs:
                self._ideal(run)
        if "latency" in measure:
            for name, time in self.cost_pass.latency().items():
                for run in self.runs:
                    if run.name == name:
                        run.time = run.time.model_copy(update={"settings": time.settings, "latency": time.latency})
            for run in self.runs:
                self._overhead(run)
        if "memory" in measure:
            for run in self.runs:
                kv = kv_of(run.lines, ModelShape.of(self.session.lm.decoder))
                self.memory[run.name] = self.cost_pass.memory(run.spec, run.record, kv)
        if "energy" in measure:
            self.energy = self.cost_pass.energy(self.prefill_shares, self.weights)

    def completed(self, run: _Run) -> RunRecord:
        """The record with everything that was measured, and reasons for what was not."""
        record = run.record
        old = record.time or costs.Time()
        updates = {name: value for name in costs.Time.model_fields if (value := getattr(run.time, name))}
        time = old.model_copy(update=updates)
        memory = self.memory.get(run.name, record.memory)
        power = self.energy.get(run.name, record.energy)
        there = {"time": bool(updates), "energy": power is not None, "memory.peak": memory.peak is not None}
        missing = {path: why for path, why in record.missing.items() if not there.get(path, False)}
        if "memory" in self.plan.measure and memory.peak is None:
            missing["memory.peak"] = "this system does not tell a process's peak memory"
        if power is not None:
            missing |= missing_energy(power)
        if time.ideal is not None and time.ideal.own_s is None:
            missing["time.ideal.own_s"] = "the method's own modules could not be profiled at other depths"
        return record.model_copy(
            update={
                "time": time if updates or record.time else None,
                "memory": memory,
                "energy": power,
                "missing": missing,
                "baseline": self._measured_ratios(run),
            }
        )

    def _measured_ratios(self, run: _Run) -> costs.Baseline | None:
        """Ratios to dense of what was measured beside it; the rest follows when the two are compared."""
        dense = next((other for other in self.runs if other.spec.stack.is_dense), None)
        if dense is None or run is dense:
            return run.record.baseline
        before = run.record.baseline or costs.Baseline(run_id=dense.record.id, documents=0)
        ratios = before.ratios | self.cost_pass.ratios(run.name)
        noise = before.noise | self.cost_pass.ratios(AGAIN)
        mine, its = self.memory.get(run.name), self.memory.get(dense.name)
        if mine and its and mine.peak and its.peak:
            ratios["peak_memory"] = costs.RatioInfo(value=mine.peak / its.peak)
        power, base = self.energy.get(run.name), self.energy.get(dense.name)
        if power and base:
            label = "energy" if power.measured_j and base.measured_j else "energy_estimated"
            ours, theirs = (np.array([one.raw]) for one in (power, base))
            ratios[label] = ratio_info(paired_ratio(theirs, ours))
        return costs.Baseline(run_id=dense.record.id, documents=0, ratios=ratios, noise=noise)

    # ---- idealized ----------------------------------------------------------------------------------------

    def _ideal(self, run: _Run) -> None:
        """Idealized seconds and rooflines of every document of the run."""
        decoder = self.session.lm.decoder
        profile = self._profile()
        with self.session.attached(run.spec):
            shape = ModelShape.of(decoder)
            own = self._own_profile(run, shape, profile)
        total, own_total = Runtime(), 0.0
        for line in run.lines:
            runtime = _sum(profile, shape, line)
            line["ideal_s"] = runtime.total
            total += runtime
            own_total += runtime.total if own is profile else 0.0 if own is None else _sum(own, shape, line).total
        count = len(run.lines)
        ideal = costs.Ideal(
            profile=profile.key,
            label=profile.label,
            clock=profile.clock,
            fit_error=max(profile.prefill_fit.mape, profile.decode_fit.mape),
            held_out_error=profile.held_out.mape,
            ref_s=total.total / count,
            own_s=None if own is None else own_total / count,
            own_label=None if own is None else own.label,
            parts={name: value / count for name, value in total.parts().items()},
        )
        run.time = run.time.model_copy(update={"ideal": ideal, "roofline": self._rooflines(run, shape)})

    def _profile(self) -> CostProfile:
        decoder, progress = self.session.lm.decoder, self.session.progress
        stored = stored_profile(decoder)
        if stored is not None:
            return stored
        with progress.bar(f"cost profile of {self.session.job.pretrained}") as bar:
            return measure_profile(decoder, bar)

    def _own_profile(self, run: _Run, shape: ModelShape, profile: CostProfile) -> CostProfile | None:
        """The profile of the modules in place, which is dense's where they are dense's."""
        decoder = self.session.lm.decoder
        dense = self.session.dense_shape
        if (shape.layers, shape.head) == (dense.layers, dense.head):
            return profile
        stored = stored_profile(decoder, run.spec.stack.fingerprint)
        if stored is not None:
            return stored
        try:
            with self.session.progress.bar(f"cost profile of {run.spec.stack.label}") as bar:
                return measure_profile(decoder, bar, own=run.spec.stack.fingerprint)
        except MethodError:  # layers of the attached model cannot be taken out
            return None

    def _rooflines(self, run: _Run, shape: ModelShape) -> dict[str, costs.RooflineInfo]:
        return {name: self._roofline(run, shape, name) for name in self.plan.accelerators}

    def _roofline(self, run: _Run, shape: ModelShape, name: str) -> costs.RooflineInfo:
        module = self.session.lm.decoder.module
        machine: Accelerator = this_host(run.spec.environment, module.dtype) if name == HOST else accelerator(name)
        dtype = str(module.dtype).removeprefix("torch.")
        bounds = [roofline(shape, unpadded(row), machine, dtype) for line in run.lines for row in _rows(line)]
        count = len(run.lines)
        seconds = sum(bound.total for bound in bounds) / count
        table = prices().usd_per_hour
        price = self.plan.usd_per_hour or table.get(name)
        return costs.RooflineInfo(
            seconds=seconds,
            dtype=dtype,
            parts={
                part: sum(getattr(bound, part) for bound in bounds) / count
                for part in ("attention", "cache", "mlp", "head", "rest")
            },
            dollars=None if price is None else dollars(seconds, price),
            price_usd_per_hour=price,
            energy_bound_j=energy_bound(seconds, machine),
            peaks_source=machine.source,
        )

    def _overhead(self, run: _Run) -> None:
        """Serve the requests once more under observation: what they would take idealized, against what they took."""
        if run.time.ideal is None or run.time.latency is None:
            return
        from harness.measure.serve import serve

        decoder, profile = self.session.lm.decoder, self._profile()
        shape, ratios, reading, weights = ModelShape.of(decoder), [], 0.0, list[float]()
        with self.session.attached(run.spec), Tracer(decoder) as tracer:
            for request, observed in zip(self.cost_pass.requests, run.time.latency.raw, strict=True):
                serve(decoder, request)
                segments = tracer.collect()[0]
                ideal = ideal_runtime(profile, shape, segments).total
                reading += ideal_runtime(profile, shape, [one for one in segments if one.phase != "decode"]).total
                weights.append(ideal)
                ratios.append(float(np.median(observed)) / ideal)
        self.weights[run.name] = weights
        self.prefill_shares[run.name] = reading / sum(weights)
        updated = run.time.ideal.model_copy(update={"overhead_ratio": float(np.median(ratios))})
        run.time = run.time.model_copy(update={"ideal": updated})


def _load(spec: RunSpec, folder: RunFolder) -> _Run:
    record = folder.record()
    lines = list(folder.samples())
    if not lines:
        raise HarnessError(f"{folder.path} has no documents to measure costs with")
    return _Run(spec, folder, record, lines)


def _rows(line: Line) -> list[list[Segment]]:
    return [[Segment.from_json(segment) for segment in row["segments"]] for row in line["rows"]]


def _sum(profile: CostProfile, shape: ModelShape, line: Line) -> Runtime:
    total = Runtime()
    for row in _rows(line):
        total += ideal_runtime(profile, shape, row)
    return total


def _same_settings(settings: costs.CostSettings | None, spec: RunSpec) -> bool:
    plan: Any = spec.job.costs
    names = ("rounds", "warmup", "new_tokens", "seed")
    return settings is not None and all(getattr(settings, name) == getattr(plan, name) for name in names)
