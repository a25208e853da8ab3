"""A job being carried out: its units one after the other, on one model that is loaded once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby, islice
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from harness.contract.method import Method
from harness.contract.model_source import ModelSource
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.states import States
from harness.contract.study import Workbench
from harness.core import environment
from harness.core.errors import HarnessError, StoreError
from harness.core.files import writing
from harness.core.paths import cache_folder
from harness.core.progress import Progress
from harness.evaluate.shard import Shard
from harness.measure.shape import ModelShape
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store
from harness.run import loading
from harness.run.bench import Bench
from harness.run.launch import Inline, Isolated
from harness.run.plan import Plan, by_model
from harness.run.quality import evaluate, evaluate_shard
from harness.run.renewal import renew
from harness.run.spec import Job, RunSpec
from harness.run.units import Unit

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM
    from harness.evaluate.workload import Workload
    from harness.run.estimate import Estimate


@dataclass
class Session:
    """A job being carried out.

    Attributes:
        job: what was asked for.
        store: where results go.
        progress: where it reports to.
        plan: the runs that the job comes to.
    """

    job: Job
    store: Store
    progress: Progress
    plan: Plan = field(init=False)
    _models: dict[str, "HarnessLM"] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(self.job, self.progress.say)

    @property
    def lm(self) -> "HarnessLM":
        """The job's model."""
        return self._loaded(None)

    def lm_of(self, spec: RunSpec) -> "HarnessLM":
        """The model of a run, loaded when the first unit needs it; until the costs, one at a time is in memory."""
        checkpoint = spec.checkpoint
        if spec.loaded.fingerprint not in self._models:
            self._models.clear()
        lm = self._loaded(checkpoint)
        loading.require_spanning(lm.decoder, spec.stack.acting)
        return lm

    def _loaded(self, checkpoint: ModelSource | None) -> "HarnessLM":
        """A model, kept until another one is loaded in its place."""
        source = checkpoint or self.plan.source
        if source.fingerprint not in self._models:
            settings = self.plan.settings_of(checkpoint)
            self._models[source.fingerprint] = loading.load(settings, source, self.plan.device, self.progress)
        return self._models[source.fingerprint]

    def followed_by(self, job: Job) -> "Session":
        """A session of another job on the same model, which stays loaded."""
        following = Session(job, self.store, self.progress)
        following._models = self._models
        if job.model_copy(update={"seeds": self.job.seeds}) == self.job:
            following.plan = self.plan.reseeded(job)
        return following

    def execute(self) -> list[RunRecord]:
        """Carry out every unit that is not done yet; the records of all runs, in order.

        On several processes (``accelerate launch``) each calls this; those that do not write return no record.
        """
        self.evaluate()
        return self.measure()

    def evaluate(self) -> list[RunRecord]:
        """Carry out every evaluation that is not done yet; the records of all runs, without costs that are to come."""
        for note in self.plan.notes:
            self.progress.say(note)
        self._try_out(self._pending)
        for unit in self.plan.units():
            if unit.kind == "quality":
                self.carry_out(unit)
        if environment.rank() == 0:
            self.compare(self.plan.specs)
        return self._records

    def measure(self) -> list[RunRecord]:
        """Measure the costs that evaluated runs lack; the records of all runs, complete."""
        if environment.rank() == 0:
            self._costs([unit for unit in self.plan.units() if unit.kind == "costs"])
        return self._records

    @property
    def lacks_costs(self) -> bool:
        """Whether a run that is evaluated has costs to be measured yet."""
        from harness.run.lacking import lacking

        asked = self.job.costs.prompts  # so many documents are enough to tell
        folders = [(spec, self.folder(spec)) for spec in self.plan.specs]
        return any(
            lacking(folder.record(), spec, sum(1 for _ in islice(folder.samples(), asked)))
            for spec, folder in folders
            if not folder.packed
        )

    def estimate(self) -> "Estimate | None":
        """How long what is not done will take; None where nothing is left to evaluate, or it cannot be told."""
        pending = self._pending
        return self._estimate(pending, self.check(pending)) if pending else None

    @property
    def _pending(self) -> list[RunSpec]:
        """The runs that are to be evaluated."""
        return [spec for spec in self.plan.specs if not self._done(spec)]

    @property
    def _records(self) -> list[RunRecord]:
        """The records of all runs, on the process that writes them."""
        return [self.folder(spec).record() for spec in self.plan.specs] if environment.rank() == 0 else []

    def carry_out(self, unit: Unit) -> None:
        """Carry out one unit here; what is finished already stays as it is."""
        if unit.kind == "costs":
            with self._alone(unit.task):
                self._measure([spec for spec in self.plan.of_task(unit.task) if self.folder(spec).finished])
            return
        self.evaluate_run(self.plan.spec(unit))

    def evaluate_run(self, spec: RunSpec, spent_s: float = 0.0) -> None:
        """Evaluate one run here, unless it is done; its shards, if it has any, took so many seconds."""
        folder = self.folder(spec)
        if self._done(spec):
            self.progress.say(f"{spec.stack.label} on {spec.task.name}: already there, nothing to do ({folder.path})")
        else:
            dense = ModelShape.of(self.plan.outline()) if spec.checkpoint else None
            evaluate(spec, self.lm_of(spec), folder, self.preparation(spec), self.progress, dense, spent_s)

    def evaluate_shard(self, spec: RunSpec, shard: Shard) -> None:
        """Evaluate a part of one run here; ``evaluate_run`` makes a record of all parts."""
        evaluate_shard(spec, self.lm_of(spec), self.folder(spec), self.preparation(spec), self.progress, shard)

    def attached(self, spec: RunSpec) -> AbstractContextManager[list[Prepared]]:
        """The run's model with its methods applied."""
        return self._applied(spec, self.lm_of(spec))

    @contextmanager
    def attached_in_place_of(self, lm: "HarnessLM", spec: RunSpec) -> Iterator[list[Prepared]]:
        """The same where another run's model is: its place is taken for the length of the ``with`` block.

        Both are in memory, so that runs on several models can take turns.
        """
        own = self._loaded(spec.checkpoint)
        with nullcontext() if own is lm else lm.decoder.standing_in(own.decoder), self._applied(spec, lm) as states:
            yield states

    def _applied(self, spec: RunSpec, lm: "HarnessLM") -> AbstractContextManager[list[Prepared]]:
        return spec.stack.applied(lm.decoder, self.preparation(spec), spec.kernels.by_place)

    def preparation(self, spec: RunSpec) -> Preparation:
        """The prepared states that a run needs: from the user's cache, or made now."""
        workbench = Workbench(cache_folder() / "searches", self.progress.say, self.progress.bar)
        calibration = spec.calibration and replace(spec.calibration, workbench=workbench)
        return Preparation(States.of_user(), calibration, self.progress.say)

    def folder(self, spec: RunSpec) -> RunFolder:
        """Where a run's result is or will be."""
        return self.store.folder(spec.id, spec.stack.label, spec.model.name, spec.task.name)

    def check_calibrations(self, specs: Sequence[RunSpec]) -> None:
        """Refuse calibration texts that the model cannot read.

        Raises:
            ModelError: a token without an embedding.
        """
        from harness.evaluate.vocabulary import Vocabulary

        calibrated = {(spec.loaded.fingerprint, id(spec.calibration)): spec for spec in specs if spec.calibration}
        for spec in calibrated.values():
            assert spec.calibration is not None
            Vocabulary.of(self.lm_of(spec).decoder).refuse_calibration(spec.calibration)

    def _try_out(self, pending: Sequence[RunSpec]) -> None:
        """Build every request, then prepare and attach every method once: what cannot be served costs no hours."""
        if not pending:
            return
        self.store.check_writable()
        for folder in map(self.folder, pending):
            if folder.packed:
                raise StoreError(f"{folder.path} is a packed run, which nothing changes: give another --output_path")
        from harness.evaluate.vocabulary import Vocabulary

        for number, (_, runs) in enumerate(groupby(by_model(pending), key=lambda spec: spec.loaded.fingerprint)):
            specs = list(runs)
            workloads = self.check(specs)
            self.check_calibrations(specs)
            if note := Vocabulary.of(self.lm_of(specs[0]).decoder).note:
                self.progress.say(note)
            if number == 0 and (guess := self._estimate(pending, workloads)):
                guess.say(self.progress.say)
            for spec in specs:
                with self.attached(spec):
                    pass

    def check(self, specs: Sequence[RunSpec]) -> "dict[str, Workload]":
        """What each task asks of a model that is shared by these runs, refused where the model cannot serve it."""
        from harness.evaluate import preflight

        workloads = {}
        for spec in {spec.task.name: spec for spec in specs}.values():
            with self.progress.bar(f"checking the requests of {spec.task.name}"):
                lm = self.lm_of(spec)
                workloads[spec.task.name] = preflight.check(lm, spec.task, spec.job, spec.context_first)
        return workloads

    def _estimate(self, pending: Sequence[RunSpec], workloads: "dict[str, Workload]") -> "Estimate | None":
        """The estimate of runs that are to come; whatever keeps it from being made keeps no run from being made."""
        from harness.core.strangers import message_of
        from harness.run.estimate import Estimate

        model = self.lm_of(pending[0]).decoder

        def lacking(spec: RunSpec) -> list[Method]:
            preparation, parts = self.preparation(spec), spec.stack.parts
            fingerprints = tuple(part.fingerprint for part in parts)
            return [part for index, part in enumerate(parts) if preparation.lacks(part, model, fingerprints[:index])]

        try:
            return Estimate.of(pending, workloads, model, lacking)
        except Exception as error:
            self.progress.say(f"how long it will take cannot be told: {message_of(error)}")
            return None

    def _done(self, spec: RunSpec) -> bool:
        """Whether the run has a record to keep."""
        return self.job.resume and self.folder(spec).finished

    def compare(self, specs: Sequence[RunSpec]) -> None:
        """Compare finished runs with dense that have not been, and renew what another source computed.

        Args:
            specs: those runs, dense first.
        """
        dense: dict[str, RunFolder] = {}
        for spec in specs:
            folder = self.folder(spec)
            try:
                renew(folder, dense.get(spec.task.name))
            except StoreError as error:
                raise StoreError(f"{error}. Give --no_resume to compute the run again.") from error
            if spec.stack.is_dense:
                dense[spec.task.name] = folder
            record = folder.record()
            if self.job.name not in (None, record.name) and not folder.packed:  # of a run that was there already
                folder.rewrite(record.model_copy(update={"name": self.job.name}))

    def _costs(self, units: Sequence[Unit]) -> None:
        """Model and measure costs, here or in a process of its own."""
        if not units:
            return
        if environment.processes() > 1:  # the others have ended, and would be waited for
            self.progress.say("costs are measured by one process: give the same command without accelerate launch")
            return
        isolated = self.job.costs.isolate
        launcher = Isolated(self.job, self.store.root) if isolated else Inline(self.carry_out)
        launcher.launch(units)

    @contextmanager
    def _alone(self, task: str) -> Iterator[None]:
        """Keep another process from measuring the same runs at the same time; one that does is waited for."""
        path = self.folder(self.plan.of_task(task)[0]).path / "costs.lock"
        lock = FileLock(path)
        with writing(path):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self.progress.say(f"another process measures the costs of {task}: waiting; Ctrl-C to stop")
                lock.acquire()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

    def _measure(self, specs: Sequence[RunSpec]) -> None:
        import torch

        from harness.run.costs import measure_costs

        try:
            place = cache(partial(self.lm_of, specs[0]))
            attach = lambda spec: self.attached_in_place_of(place(), spec)  # noqa: E731 - a bound partial cannot be lazy
            measure_costs(Bench(place, attach, self.folder, self.progress), specs)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise HarnessError(
                f"measuring costs on {specs[0].task.name}: out of memory. The scores are kept: give the same command "
                "again when memory is free, or with --measure flops."
            ) from error
