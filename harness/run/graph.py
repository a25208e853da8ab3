"""Latency without launch overhead: a task's own requests, served alone by captured steps, dense and methods in turn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import torch

from harness.contract.decoder import Decoder
from harness.core.errors import CaptureError
from harness.core.progress import Progress
from harness.measure.batched import is_full
from harness.measure.capture import Capture, Compiled, CudaGraphs, FullMemoryError
from harness.measure.conditions import Observer, spread_doubts
from harness.measure.graph import Agreement, Captured, captured_with
from harness.measure.interleave import Participant, ParticipantError, Turns, interleave
from harness.measure.serve import CostRequest, Served
from harness.results import costs
from harness.results.graph import CapturedBy, Graph, GraphTimes
from harness.results.graph_ratios import compared
from harness.results.record import RunRecord
from harness.run.completion import whole_command
from harness.run.measured import DIGITS, clock_of
from harness.run.spec import CostPlan, Measure, RunSpec
from harness.run.throughput import Rated

_FULL: Final = "out of memory while requests were served by captured steps: give the same command again when it is free"
_WARMUP: Final = 1


def ways(device: torch.device) -> list[Callable[[], Capture]]:
    """Ways of capturing a step on a device, the best first."""
    return [lambda: CudaGraphs(device), Compiled]


@dataclass(frozen=True)
class _Way:
    """How a participant's steps are captured."""

    make: Callable[[], Capture]
    name: CapturedBy
    reads: bool
    agreement: Agreement


@dataclass
class GraphPass:
    """The latency without launch overhead of one task's runs.

    Attributes:
        requests: of the task.
        runs: those that lack it.
        dense: whom all runs are measured beside, whether it lacks it or not; None in a job without it.
        exclude: told who raised something that is no refusal, and what; it may raise.
    """

    model: Decoder
    requests: Callable[[], Sequence[CostRequest]]
    runs: Sequence[Rated]
    dense: Rated | None
    progress: Progress
    exclude: Callable[[Participant, str, BaseException], None]
    _captured: Captured | None = None
    _chosen: dict[Participant, _Way] = field(default_factory=dict)

    def carry_out(self) -> None:
        """Capture, compare and measure; what cannot be captured has the reason in its record."""
        title = f"graphs · {self.runs[0].spec.task.name}"
        try:
            ways(self.model.device)[0]()  # refused before anything is attached
            requests = self.requests()
            self._choose(title, requests)
            if any(run.participant in self._chosen for run in self.runs):
                self._measure(title, requests)
        except CaptureError as error:
            self._refuse(title, self.runs, error)
        except (torch.OutOfMemoryError, MemoryError):
            self._refuse(title, self.runs, FullMemoryError(_FULL))
        finally:
            self._captured = None

    def _choose(self, title: str, requests: Sequence[CostRequest]) -> None:
        """How everybody's steps are captured, and whether they give the same tokens.

        Raises:
            CaptureError: dense's cannot be.
        """
        everybody = [*([self.dense] if self.dense else []), *self.runs]
        with self.progress.bar(f"capturing · {title}") as bar:
            bar.expect(len({run.participant for run in everybody}))
            for run in {run.participant: run for run in everybody}.values():
                try:
                    with run.participant.attached():
                        self._chosen[run.participant] = self._way(run, requests)
                except ParticipantError as error:
                    if not isinstance(error.__cause__, CaptureError):
                        self.exclude(run.participant, title, error.__cause__ or error)
                    elif self.dense is not None and run.participant is self.dense.participant:
                        raise type(error.__cause__)(f"dense: {error.__cause__}") from error
                    else:
                        self._refuse(title, [run], error.__cause__)
                bar.advance(1)

    def _way(self, run: Rated, requests: Sequence[CostRequest]) -> _Way:
        if reason := refusal(run.spec):
            raise CaptureError(reason)
        way, captured, agreement = captured_with(
            ways(self.model.device), lambda capture: self._steps(run, capture, requests), requests
        )
        return _Way(way, captured.capture.name, captured.reads, agreement)

    def _steps(self, run: Rated, capture: Capture, requests: Sequence[CostRequest]) -> Captured:
        length = max(len(request.tokens) + request.new_tokens for request in requests)
        return Captured(self.model, capture, length, run.spec.stack.input_dependent)

    def _measure(self, title: str, requests: Sequence[CostRequest]) -> None:
        """Serve the requests in turns, and write what came of it."""
        by_participant = {run.participant: run for run in [*([self.dense] if self.dense else []), *self.runs]}
        taking = {each: self._participant(by_participant[each], requests) for each in self._chosen}
        repeat = None
        if self.dense is not None:
            repeat = self._participant(by_participant[self.dense.participant], requests)
        plan, observer = self.runs[0].spec.job.costs, Observer(self.model.device)
        turns = Turns({}, 1)
        while taking:
            everybody = [*taking.values(), *([repeat] if repeat else [])]
            try:
                with self.progress.bar(title) as bar:
                    turns = interleave(
                        self._serve, everybody, requests, rounds=plan.rounds, warmup=_WARMUP, seed=plan.seed, bar=bar
                    )
                break
            except ParticipantError as error:
                failed = next((own for own, each in taking.items() if each is error.participant), None)
                cause = error.__cause__ or error
                if is_full(cause):
                    cause = FullMemoryError(_FULL)
                if failed is None or (self.dense and failed is self.dense.participant):
                    kind = type(cause) if isinstance(cause, CaptureError) else CaptureError
                    first = next(iter(str(cause).splitlines()), type(cause).__name__)
                    raise kind(f"dense: {first}") from error
                del taking[failed]
                if isinstance(cause, CaptureError):
                    self._refuse(title, [by_participant[failed]], cause)
                else:
                    self.exclude(failed, title, cause)
        doubts = observer.conditions().doubts()
        for run in self.runs:
            if run.participant in taking:
                self._keep(run, self._section(run, requests, turns, taking, repeat, doubts))

    def _participant(self, run: Rated, requests: Sequence[CostRequest]) -> Participant:
        """A run with its steps captured for as long as it is attached."""
        way = self._chosen[run.participant]

        @contextmanager
        def attach() -> Iterator[None]:
            with run.participant.attach():
                self._captured = self._steps(run, way.make(), requests)
                try:
                    yield
                finally:
                    self._captured = None  # before what it captured is detached

        return Participant(run.participant.label, attach)

    def _serve(self, request: CostRequest) -> Served:
        assert self._captured is not None
        return self._captured.serve(request)

    def _section(
        self,
        run: Rated,
        requests: Sequence[CostRequest],
        turns: Turns,
        taking: dict[Participant, Participant],
        repeat: Participant | None,
        doubts: Sequence[str],
    ) -> Graph:
        way, plan = self._chosen[run.participant], run.spec.job.costs
        dense = self.dense.participant if self.dense and self.dense.participant is not run.participant else None
        times = _times(turns.served[taking[run.participant]])
        section = Graph(
            captured_by=way.name,
            dense_by=None if dense is None else self._chosen[dense].name,
            reads=way.reads,
            clock=clock_of(run.spec.environment.device),
            prompts=len(requests),
            rounds=plan.rounds,
            new_tokens=plan.new_tokens,
            seed=plan.seed,
            prompt_tokens=[len(request.tokens) for request in requests],
            run=times,
            dense=None if dense is None else _times(turns.served[taking[dense]]),
            dense_repeat=None if dense is None or repeat is None else _times(turns.served[repeat]),
            tokens=way.agreement.tokens,
            differences=way.agreement.differences,
        )
        differing = [section.differing] if section.differing else []
        return compared(section.model_copy(update={"doubts": [*doubts, *spread_doubts(times.latency), *differing]}))

    def _refuse(self, title: str, runs: Sequence[Rated], error: CaptureError) -> None:
        """Write why there are no times; what memory kept from being measured is asked for again."""
        who = "" if runs is self.runs else f"{runs[0].spec.stack.label}: "
        self.progress.say(f"{title}: {who}{error}")
        for run in runs:
            record = run.folder.record()
            update: dict[str, object] = {"missing": {**record.missing, "time.graph": str(error)}}
            if not isinstance(error, FullMemoryError):
                update["measured"] = sorted({*record.measured, "graph"})
            run.folder.rewrite(record.model_copy(update=update))

    def _keep(self, run: Rated, section: Graph) -> None:
        record = run.folder.record()
        time = (record.time or costs.Time()).model_copy(update={"graph": section})
        measured: set[Measure] = {*record.measured, "graph"}
        update = {
            "time": time,
            "missing": {path: why for path, why in record.missing.items() if path not in ("time", "time.graph")},
            "measured": sorted(measured),
            "command": whole_command(run.spec, measured, time),
        }
        run.folder.rewrite(record.model_copy(update=update))


def refusal(spec: RunSpec) -> str | None:
    """Why the steps of a run's methods cannot be captured, by what they declare; None where they may be."""
    stack = spec.stack
    for part in stack.parts:
        if part.drafts:
            return f"{part.name} writes guessed tokens: how many a step reads depends on which of them were right"
        if part.chooses_keys:
            return (
                f"{part.name} decides which keys a token meets by how many there are, which a cache of fixed size hides"
            )
    return None


def lacks_graph(record: RunRecord, plan: CostPlan) -> bool:
    """Whether a record has neither times with these settings nor a reason."""
    section = record.time.graph if record.time else None
    if section is None:
        return "graph" not in record.measured
    return any(getattr(section, name) != getattr(plan, name) for name in ("rounds", "new_tokens", "seed"))


def _times(served: Sequence[Sequence[Served]]) -> GraphTimes:
    """A participant's times, of [requests][rounds]."""
    latency = [[round(each.end_to_end, DIGITS) for each in rounds] for rounds in served]
    if not all(rounds[0].tokens_after_first for rounds in served):
        return GraphTimes(latency=latency)
    return GraphTimes(
        latency=latency,
        ttft=[[round(each.ttft, DIGITS) for each in rounds] for rounds in served],
        tpot=[[round(each.tpot or 0.0, DIGITS) for each in rounds] for rounds in served],
    )
