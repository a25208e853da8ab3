"""The cost pass of a task: cost profiles, then the measured passes, then the records of its runs are completed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeVar

import torch

from harness.contract.decoder import Manner
from harness.core.errors import DiskError, HarnessError, MethodError, TraceError
from harness.core.strangers import message_of, refusal_of
from harness.core.text import duration
from harness.measure.energy import energy
from harness.measure.interleave import Participant, ParticipantError, Turns
from harness.measure.memory import Peak
from harness.measure.modules import profile_key
from harness.measure.profile import CostProfile
from harness.measure.profiles import described, kept_profile
from harness.measure.profiling import default_budget, measure_profile
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape
from harness.results import costs
from harness.results.conditions import Conditions
from harness.results.record import RunRecord
from harness.results.samples import SampleLine
from harness.results.store import RunFolder
from harness.results.throughput import BATCHES
from harness.run.bench import Bench
from harness.run.completion import Latencies, Observed, Subject, complete, give_up
from harness.run.graph import GraphPass
from harness.run.lacking import lacking
from harness.run.measured import EnergyWindows, Serving, draw_requests
from harness.run.modelled import Profiles, RequestTimes, request_times
from harness.run.renewal import adds, stored_profiles
from harness.run.spec import Measure, RunSpec
from harness.run.throughput import Rated, ThroughputPass

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM


APART: Final = frozenset[Measure]({"throughput", "graph"})
"""Regimes of their own, which write what they measure themselves."""
_Measured = TypeVar("_Measured")
_NO_PEAK = "this system does not tell a process's peak memory"
_SEVERAL_MODELS = "dense and another checkpoint were in memory together: give --no_baseline and one of them alone"


@dataclass(eq=False)
class _Run:
    """A finished run of the task.

    Attributes:
        lacking: what was asked for and is not in its record, or was measured with other settings.
        participant: the run in the measured passes.
        shape, key: of the model with its methods attached; ``adds`` whether they add work to it.
    """

    spec: RunSpec
    folder: RunFolder
    record: RunRecord
    lines: list[SampleLine]
    lacking: frozenset[Measure]
    participant: Participant
    shape: ModelShape = field(init=False)
    key: str = field(init=False)
    adds: bool = field(init=False)
    profiles: Profiles | None = None
    traces: list[list[Segment]] | None = None
    times: RequestTimes | None = None

    @property
    def manner(self) -> Manner:
        """How a text of its task is served alone, where that is context first."""
        return replace(self.spec.stack.manner, alone=False) if self.spec.context_first else Manner()


def measure_costs(bench: Bench, specs: Sequence[RunSpec]) -> None:
    """Complete the records of a task's runs; those that have their costs already stay as they are.

    Dense is measured again beside every new method, so that no time is compared across sessions; its own finished
    record is kept.
    """
    runs = [_load(bench, spec) for spec in specs]
    if any(run.lacking for run in runs):
        _CostPass(bench, [run for run in runs if run.lacking or run.spec.stack.is_dense]).carry_out()


def _load(bench: Bench, spec: RunSpec) -> _Run:
    folder = bench.folder(spec)
    record, lines = folder.record(), list(folder.samples())
    if not lines:
        raise HarnessError(f"{folder.path} has no documents to measure costs with")
    participant = Participant(spec.stack.label, lambda: bench.attach(spec))
    wanted = frozenset[Measure]() if folder.packed else lacking(record, spec, len(lines))
    return _Run(spec, folder, record, lines, wanted, participant)


@dataclass
class _CostPass:
    """The cost pass of one task.

    Attributes:
        runs: those whose records lack something, and dense. One that raises is left out of all that follows, with the
            reason in its record; where dense raises, nothing can be measured.
        references: dense, and dense once more, that serve requests in the manner of runs which are measured beside
            them: so that no manner of reading a text looks like a saving, or like a cost.
    """

    bench: Bench
    runs: list[_Run]
    _turns: Turns | None = None
    _conditions: Conditions | None = None
    _peaks: dict[Participant, Peak | None] = field(default_factory=dict)
    _windows: EnergyWindows | None = None
    _failed: dict[Participant, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = self.runs[0].spec.job.costs
        self.dense = next((run for run in self.runs if run.spec.stack.is_dense), None)
        self.references = {run.manner: self._references(run.manner) for run in self.runs} if self.dense else {}

    @cached_property
    def lm(self) -> "HarnessLM":
        """The model."""
        return self.bench.load()

    @cached_property
    def serving(self) -> Serving:
        """The measured passes, on requests drawn when the first one needs them."""
        first = self.runs[0]
        requests = draw_requests(self.lm, first.spec, first.lines)
        return Serving(self.lm.decoder, requests, self.plan, self.bench.progress, first.spec.task.name)

    def carry_out(self) -> None:
        """Profiles, then the passes, one kind at a time, then the records, dense's first."""
        for run in self.runs:
            with self._contained(run, "attaching"), run.participant.attach():
                run.shape, run.key = ModelShape.of(self.lm.decoder), profile_key(self.lm.decoder)
                run.adds = bool(self.lm.decoder.auxiliaries) or any(map(adds, run.lines))
        self._announce()
        if self._profiled:
            self._profile()
        if "latency" in self.wanted:
            everybody = self._participants("latency", repeated=True)
            self._turns, self._conditions = self._together("latency", self.serving.latency, everybody)
        if "memory" in self.wanted and len(self._models) == 1:
            self._peaks = self._together("memory", self.serving.memory, self._participants("memory"))
        if "energy" in self.wanted:
            self._windows = self._together("energy", self.serving.energy, self._participants("energy"))
        for run in self._present:
            with self._contained(run, "idealized time"):
                self._trace(run)
        for run in self._present:
            if run.lacking - APART:
                self._complete(run)
        if "throughput" in self.wanted:
            self._measure_throughput()
        if "graph" in self.wanted:
            self._measure_graphs()
        for run in self.runs:
            if reason := self._failed.get(run.participant):
                give_up(run.folder, run.folder.record(), run.lacking, reason)

    def _measure_throughput(self) -> None:
        """Last, and written size by size, so that whatever ends it ends nothing else."""
        first, count = self.runs[0], BATCHES * max(self.plan.batch_sizes)
        ThroughputPass(
            self.lm.decoder,
            lambda: draw_requests(self.lm, first.spec, first.lines, count),
            [Rated(run.spec, run.folder, run.participant) for run in self._present if "throughput" in run.lacking],
            self.dense.participant if self.dense else None,
            self.bench.progress,
            self._exclude,
        ).carry_out()

    def _measure_graphs(self) -> None:
        rated = {run: Rated(run.spec, run.folder, run.participant) for run in self._present}
        GraphPass(
            self.lm.decoder,
            lambda: self.serving.requests,
            [each for run, each in rated.items() if "graph" in run.lacking],
            rated[self.dense] if self.dense else None,
            self.bench.progress,
            self._exclude,
        ).carry_out()

    def _trace(self, run: _Run) -> None:
        """What runs for the measured requests, and its idealized seconds."""
        profiles = run.profiles or stored_profiles(run.record.time.ideal if run.record.time else None)
        if "latency" in run.lacking or (profiles is not None and "energy" in run.lacking):
            run.traces = self.serving.traces(run.participant)
            run.times = request_times(profiles, run.shape, run.traces) if profiles else None

    def _complete(self, run: _Run) -> None:
        dense = self.dense.folder if self.dense is not None and self.dense is not run else None
        try:
            complete(self._subject(run), self._observed(run), dense)
        except TraceError as error:
            self._exclude(run.participant, "idealized time", error)

    @property
    def _profiled(self) -> list[_Run]:
        """Those to make cost profiles for: of the dense model's layers, where their work is counted."""
        if "ideal" not in self.plan.measure or self.lm.decoder.anatomy.opaque is not None:
            return []
        return [run for run in self._present if run.spec.checkpoint is None]

    @property
    def _models(self) -> set[str]:
        """The fingerprints of the models that are in memory."""
        return {run.spec.loaded.fingerprint for run in self.runs}

    # ---- runs that raise ----------------------------------------------------------------------------------

    @property
    def wanted(self) -> frozenset[Measure]:
        """What any run lacks that has not raised."""
        return frozenset[Measure]().union(*(run.lacking for run in self._present))

    @property
    def _present(self) -> list[_Run]:
        """The runs that have not raised."""
        return [run for run in self.runs if run.participant not in self._failed]

    def _participants(self, measure: Measure, *, repeated: bool = False) -> list[Participant]:
        """Who takes part in a pass: the runs that lack it, and their references, on request with the repeated ones."""
        runs = [run for run in self._present if measure in run.lacking or run is self.dense]
        pairs = [self.references[manner] for manner in dict.fromkeys(run.manner for run in runs) if self.references]
        beside = [each for pair in pairs for each in pair[: 1 + repeated]]
        return list(dict.fromkeys([*(run.participant for run in runs), *beside]))

    def _references(self, manner: Manner) -> tuple[Participant, Participant]:
        assert self.dense is not None
        participant = self.dense.participant

        @contextmanager
        def attach() -> Iterator[None]:
            with participant.attach(), self.lm.decoder.scored(manner):
                yield

        dense = participant if manner == self.dense.manner else Participant("dense", attach)
        return dense, Participant("dense (repeat)", dense.attach)

    def _together(
        self, stage: str, serve: Callable[[Sequence[Participant]], _Measured], participants: Sequence[Participant]
    ) -> _Measured:
        """What a pass measures of the participants, begun again without any that raises."""
        while True:
            try:
                return serve([participant for participant in participants if participant not in self._failed])
            except ParticipantError as error:
                self._exclude(error.participant, stage, error.__cause__ or error)

    @contextmanager
    def _contained(self, run: _Run, stage: str) -> Iterator[None]:
        """Let what a run raises in the ``with`` block be the end of that run alone."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, DiskError):
            raise
        except ParticipantError as error:
            self._exclude(run.participant, stage, error.__cause__ or error)
        except (Exception, SystemExit) as error:
            self._exclude(run.participant, stage, error)

    def _exclude(self, participant: Participant, stage: str, error: BaseException) -> None:
        """Leave a participant out of all that follows.

        Raises:
            HarnessError: it is dense, which all others are measured beside.
        """
        message = str(error) if isinstance(error, HarnessError) else refusal_of(error) or message_of(error)
        what = f"{stage} of {participant.label} on {self.runs[0].spec.task.name}"
        if any(participant in pair for pair in self.references.values()):
            raise HarnessError(f"costs could not be measured: {what}: {message}") from error
        self._failed[participant] = f"could not be measured: {what}: {message}"
        self.bench.progress.say(f"costs {self._failed[participant]}")

    def _announce(self) -> None:
        """Say how long it will take before it starts."""
        budgets = 0.0
        if self._profiled:
            by_key = {run.key: run for run in reversed(self._profiled)} | {
                profile_key(self.lm.decoder): self._reference
            }
            budgets = sum(self._budget(run) for key, run in by_key.items() if not self._kept(key))
        seconds = budgets
        if passes := self.wanted - {"ideal"}:
            everybody = [run.participant for run in self._present]
            everybody += [each for pair in self.references.values() for each in pair if each not in everybody]
            seconds += self._together("a first request", partial(self.serving.seconds_for, passes), everybody)
        profiles = f", {duration(budgets)} of it for cost profiles" if budgets else ""
        count = f"{len(self._present)} run{'' if len(self._present) == 1 else 's'}"
        self.bench.progress.say(f"costs: about {duration(seconds)} for {count}{profiles}")

    @property
    def _reference(self) -> _Run:
        """Dense, or the first run of a job without it."""
        return self.dense or self.runs[0]

    # ---- profiles -----------------------------------------------------------------------------------------

    def _profile(self) -> None:
        """The dense model's profile, and that of each run's own modules where they differ from dense's."""
        dense_key = profile_key(self.lm.decoder)
        dense = self._kept(dense_key) or self._measured(self._reference, self._reference.spec.job.pretrained)
        for run in self._profiled:
            own: CostProfile | None = dense if run.key == dense_key else self._kept(run.key)
            with self._contained(run, "cost profile"):
                own = own or self._own(run)
            if run.participant in self._failed:
                continue
            with self._contained(run, "what the method adds"):
                run.profiles = Profiles(dense, own, self._added(run) if run.adds else None)

    def _own(self, run: _Run) -> CostProfile | None:
        """The profile of a run's own modules, measured now."""
        try:
            with run.participant.attach():
                return self._measured(run, run.spec.stack.label)
        except MethodError:  # layers of the attached model cannot be taken out
            return None

    def _added(self, run: _Run) -> costs.AddedCosts:
        """What the method adds to the layers, measured now or, if nothing but other costs is asked for, before."""
        before = run.record.time.ideal if run.record.time else None
        if "ideal" not in run.lacking and before is not None and before.added is not None:
            return before.added
        return self.serving.added(run.participant)

    def _kept(self, key: str) -> CostProfile | None:
        profile = kept_profile(key)
        return None if profile is None or profile.improvable(self.plan.budget_s) else profile

    def _budget(self, run: _Run) -> float:
        """Seconds for a profile: the user's, or a fifth of the run's quality pass."""
        return self.plan.budget_s or default_budget(run.record.duration_s)

    def _measured(self, run: _Run, name: str) -> CostProfile:
        with self.bench.progress.bar(f"cost profile of {name}") as bar:
            profile = measure_profile(self.lm.decoder, bar, self._budget(run))
        self.bench.progress.say(f"cost profile of {name}: {described(profile)}")
        return profile

    # ---- what each run is completed by --------------------------------------------------------------------

    def _subject(self, run: _Run) -> Subject:
        return Subject(run.spec, run.folder, run.record, run.lines, run.shape, self.lm.decoder.module.dtype)

    def _observed(self, run: _Run) -> Observed:
        beside = self.references[run.manner][0] if self.dense is not None and self.dense is not run else None
        return Observed(
            measured=run.lacking - APART,
            profiles=run.profiles,
            traces=run.traces,
            times=run.times,
            latencies=self._latencies(run) if "latency" in run.lacking else None,
            peak=self._peaks.get(run.participant),
            no_peak=_NO_PEAK if len(self._models) == 1 else _SEVERAL_MODELS,
            energy=self._energy(run.participant, run.times) if "energy" in run.lacking else None,
            dense_peak=self._peaks.get(beside) if beside and "memory" in run.lacking else None,
            dense_energy=self._energy(beside, None) if beside and "energy" in run.lacking else None,
        )

    def _latencies(self, run: _Run) -> Latencies:
        assert self._turns is not None
        assert self._conditions is not None
        roles = {"run": self._turns.served[run.participant]}
        if self.dense is not None and run is not self.dense:
            dense, repeat = self.references[run.manner]
            roles |= {"dense": self._turns.served[dense], "dense_repeat": self._turns.served[repeat]}
        return Latencies(self.serving.requests, roles, self._conditions, self._turns.chunk)

    def _energy(self, participant: Participant, times: RequestTimes | None) -> costs.Energy | None:
        if self._windows is None:
            return None
        return energy(
            self._windows.busy[participant],
            self._windows.idle,
            others_share=self._windows.others_share,
            prefill_share=times.prefill_share if times else None,
            weights=times.seconds if times else (),
            intensity_g_per_kwh=self.plan.carbon_intensity,
        )
