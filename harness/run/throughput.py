"""Throughput: what batches of a task's own texts take, by their size, dense and all methods taking turns.

Sizes are measured one after the other, the smallest first, and each is written when it is done: what is killed later
loses one size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final

from harness.contract.decoder import Decoder
from harness.core.errors import NoRoomError
from harness.core.progress import Progress
from harness.measure.batched import Batch, batches_of, require_room, serve_batch
from harness.measure.conditions import Observer, spread_doubts
from harness.measure.interleave import Participant, ParticipantError, Turns, interleave
from harness.measure.segment import Segment
from harness.measure.serve import CostRequest, Served
from harness.results import costs
from harness.results.rates import rated
from harness.results.record import RunRecord
from harness.results.store import RunFolder
from harness.results.throughput import BatchSize, BatchTimes, Throughput
from harness.run.completion import whole_command
from harness.run.measured import DIGITS, clock_of
from harness.run.spec import CostPlan, Measure, RunSpec

NO_BATCHES: Final = "texts that are scored context first share no batch with others of another length"
_ALONE: Final = "{}: rows of a batch influence each other, so it is served one row at a time"
_WARMUP: Final = 1


@dataclass(frozen=True)
class Rated:
    """A run whose throughput is measured."""

    spec: RunSpec
    folder: RunFolder
    participant: Participant


@dataclass(frozen=True)
class ThroughputPass:
    """The throughput of one task's runs.

    Attributes:
        requests: of the task, from which batches are made.
        dense: whom all runs are measured beside; None in a job without it.
        exclude: told who raised something other than that memory is full, and what; it may raise.
    """

    model: Decoder
    requests: Callable[[], Sequence[CostRequest]]
    runs: Sequence[Rated]
    dense: Participant | None
    progress: Progress
    exclude: Callable[[Participant, str, BaseException], None]

    def carry_out(self) -> None:
        """Every batch size that a run lacks, the smallest first."""
        task, plan = self.runs[0].spec.task.name, self.runs[0].spec.job.costs
        if self.runs[0].spec.context_first is not None:
            for run in self.runs:
                _rewrite(run, {**run.folder.record().missing, "time.throughput": NO_BATCHES})
            return
        requests = self.requests()
        runs = list(self.runs)
        for size in sorted(plan.batch_sizes):
            lacking = [run for run in runs if lacks(run.folder.record(), plan, size)]
            alone = [run for run in lacking if size > 1 and not run.spec.stack.batchable]
            for run in alone:
                self._without(run, size, _ALONE.format(run.spec.stack.label))
            lacking = [run for run in lacking if run not in alone]
            if not lacking:
                continue
            title = f"throughput, batch size {size} · {task}"
            try:
                require_room(self.model, requests, size)
            except NoRoomError as error:
                self.progress.say(f"{title}: {error}")
                for run in lacking:
                    self._without(run, size, str(error))
                continue
            failed = self._measure(title, size, lacking, requests)
            runs = [run for run in runs if run not in failed]

    def _measure(
        self, title: str, size: int, runs: Sequence[Rated], requests: Sequence[CostRequest]
    ) -> Sequence[Rated]:
        """Measure batches of one size and write what came of it; the runs that raised, which take no further part."""
        batches, observer = batches_of(requests, size), Observer(self.model.device)
        turns, shares, full = self._turns(title, batches, runs)
        conditions = observer.conditions()
        for run in runs:
            if run.participant in full:
                self._without(run, size, full[run.participant])
            elif run.participant in turns.served:
                section = self._section(run, batches, turns, full, shares)
                repeated = [section.repeated] if section.repeated else []
                doubts = [*conditions.doubts(), *spread_doubts(section.run.reading_s), *repeated]
                self._with(run, rated(section.model_copy(update={"doubts": doubts})))
        return [run for run in runs if run.participant not in (*full, *turns.served)]

    def _turns(
        self, title: str, batches: Sequence[Batch], runs: Sequence[Rated]
    ) -> tuple[Turns, Mapping[Participant, float | None], Mapping[Participant, str]]:
        """The turns of dense and of the runs, begun again without any that raises; layers run; who does not fit."""
        plan, full = runs[0].spec.job.costs, dict[Participant, str]()
        everybody = list(dict.fromkeys([*([self.dense] if self.dense else []), *(run.participant for run in runs)]))
        while everybody:
            try:
                shares = {each: self._layers_run(each, batches) for each in everybody}
                with self.progress.bar(title) as bar:
                    serve = partial(serve_batch, self.model)
                    turns = interleave(
                        serve, everybody, batches, rounds=plan.rounds, warmup=_WARMUP, seed=plan.seed, bar=bar
                    )
            except ParticipantError as error:
                everybody.remove(error.participant)
                if isinstance(error.__cause__, NoRoomError):
                    full[error.participant] = f"{error.participant.label}: {error.__cause__}"
                    self.progress.say(f"{title}: {full[error.participant]}")
                else:
                    self.exclude(error.participant, title, error.__cause__ or error)
            else:
                return turns, shares, full
        return Turns({}, 1), {}, full

    def _section(
        self,
        run: Rated,
        batches: Sequence[Batch],
        turns: Turns,
        full: Mapping[Participant, str],
        shares: Mapping[Participant, float | None],
    ) -> BatchSize:
        dense = self.dense if self.dense is not run.participant else None
        beside = turns.served.get(dense) if dense else None
        return BatchSize(
            batch_size=len(batches[0].requests),
            texts=len({id(request) for batch in batches for request in batch.requests}),
            prompt_tokens=[batch.prompt_tokens for batch in batches],
            pad_tokens=sum(batch.pad_tokens for batch in batches),
            run=_times(turns.served[run.participant], batches),
            dense=None if beside is None else _times(beside, batches),
            no_dense=full.get(dense) if dense else None,
            reading=0.0,
            layers_run=shares.get(run.participant),
        )

    def _layers_run(self, participant: Participant, batches: Sequence[Batch]) -> float | None:
        """Serve every batch once under observation; the executed share of all layers over their tokens."""
        from harness.measure.trace import Tracer

        with participant.attached():
            if self.model.anatomy.opaque is not None:
                return None
            segments = list[Segment]()
            with Tracer(self.model) as tracer:
                for batch in batches:
                    serve_batch(self.model, batch)
                    segments += chain(*tracer.collect())
        ran = sum(each.forwards * (sum(each.attention) + sum(each.mlp)) for each in segments)
        return ran / sum(each.forwards * each.queries * 2 * len(each.attention) for each in segments)

    def _with(self, run: Rated, size: BatchSize) -> None:
        old = self._begun(run)
        sizes = sorted([*old.sizes, size], key=lambda each: each.batch_size)
        self._keep(run, old.model_copy(update={"sizes": sizes}))

    def _without(self, run: Rated, size: int, reason: str) -> None:
        old = self._begun(run)
        self._keep(run, old.model_copy(update={"missing": {**old.missing, str(size): reason}}))

    def _begun(self, run: Rated) -> Throughput:
        """What the run has so far of these settings."""
        record, plan = run.folder.record(), run.spec.job.costs
        if (section := begun(record, plan)) is not None:
            return section
        clock = clock_of(run.spec.environment.device)
        return Throughput(clock=clock, rounds=plan.rounds, new_tokens=plan.new_tokens, seed=plan.seed)

    def _keep(self, run: Rated, section: Throughput) -> None:
        record = run.folder.record()
        answered = ("time", "time.throughput", "time.throughput.sizes")
        missing = {path: why for path, why in record.missing.items() if path not in answered}
        time = (record.time or costs.Time()).model_copy(update={"throughput": section})
        _rewrite(run, missing, time)


def _rewrite(run: Rated, missing: dict[str, str], time: costs.Time | None = None) -> None:
    """Write what is new in the run's record, which holds whatever else was measured."""
    record = run.folder.record()
    measured: set[Measure] = {*record.measured, "throughput"}
    time = time or record.time
    command = whole_command(run.spec, measured, time)
    update = {"time": time, "missing": missing, "measured": sorted(measured), "command": command}
    run.folder.rewrite(record.model_copy(update=update))


def begun(record: RunRecord, plan: CostPlan) -> Throughput | None:
    """What a record has of throughput that was measured with these settings."""
    section = record.time.throughput if record.time else None
    names = ("rounds", "new_tokens", "seed")
    if section is None or any(getattr(section, name) != getattr(plan, name) for name in names):
        return None
    return section


def lacks(record: RunRecord, plan: CostPlan, size: int) -> bool:
    """Whether a record has neither numbers nor a reason for a batch size."""
    section = begun(record, plan)
    return section is None or size not in section.answered


def _times(served: Sequence[Sequence[Served]], batches: Sequence[Batch]) -> BatchTimes:
    """A participant's times, of [batches][rounds]."""
    reading = [[round(each.ttft, DIGITS) for each in rounds] for rounds in served]
    if not all(rounds[0].tokens_after_first for rounds in served):
        return BatchTimes(reading_s=reading)
    return BatchTimes(
        reading_s=reading,
        writing_s=[[round(each.end_to_end - each.ttft, DIGITS) for each in rounds] for rounds in served],
        written=[
            rounds[0].tokens_after_first * len(batch.requests) for rounds, batch in zip(served, batches, strict=True)
        ],
    )
