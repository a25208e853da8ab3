"""A job: resolve what was asked into runs, load the model once, carry out those that have no record yet."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contract.calibration import Workbench
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.stack import Stack, parse
from harness.contract.states import States
from harness.core import environment
from harness.core.errors import HarnessError, MethodError, ModelError, StoreError, UnknownNameError
from harness.core.paths import cache_folder
from harness.core.progress import Progress
from harness.evaluate.calibration_text import calibration_for
from harness.evaluate.quiet import collected_warnings
from harness.evaluate.tasks import LoadedTask, Overrides, TaskLoader, refuse_without_prompt
from harness.measure.shape import ModelShape
from harness.model.source import ModelSource, locate
from harness.results.compare import compared
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store
from harness.run.quality import run
from harness.run.spec import Job, RunSpec

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM


@dataclass
class Session:
    """A job being carried out.

    Attributes:
        job: what was asked for.
        store: where results go.
        progress: where it reports to.
    """

    job: Job
    store: Store
    progress: Progress

    @cached_property
    def stacks(self) -> list[Stack]:
        """The methods, dense first unless switched off, each once."""
        args = self.job.method_args
        stacks = [parse(text, args if text != "dense" else None) for text in self.job.methods]
        if self.job.baseline:
            stacks = [parse("dense"), *stacks]
        return list({stack.fingerprint: stack for stack in stacks}.values())

    @cached_property
    def source(self) -> ModelSource:
        """Where the model is."""
        args = self.job.model_args
        return locate(self.job.pretrained, args.get("revision"), args.get("subfolder") or "")

    @cached_property
    def specs(self) -> list[RunSpec]:
        """Every run of the job: all methods of the first task, then of the next."""
        job = self.job
        stacks = self.stacks  # a wrong method name costs no loading
        for stack in stacks:
            if job.batch_size > 1 and not stack.batchable:
                raise MethodError(f"{stack.label}: rows of a batch influence each other; give --batch_size 1")
        source = self.source
        loader = TaskLoader(job.include_path, {"pretrained": source.loadable, **job.model_args, **job.metadata})
        asked: dict[str, Job] = {}
        for request in job.tasks:
            for name in loader.resolve([request.task]):
                asked.setdefault(name, job.asking(request))
        device = environment.observe(self.device)
        specs = []
        for name, its in asked.items():
            with collected_warnings("lm_eval", "datasets"):
                task = loader.load(name, Overrides(its.num_fewshot, its.gen_kwargs, its.seeds[3]))
            self._check_samples(task)
            data = task.fingerprint(its.limit, its.samples)
            for stack in stacks:
                if stack.pools_prompt:
                    refuse_without_prompt(stack.label, task)
                needed = stack.needs_preparation
                calibration = (
                    calibration_for(task, job.calibration, questions=stack.questions_needed) if needed else None
                )
                specs.append(RunSpec(its, stack, task, source, device, data, calibration))
        leaves = {leaf for spec in specs for leaf in spec.task.tasks}
        for name in job.samples or {}:
            if name not in leaves:
                raise UnknownNameError("task in --samples", name, leaves)
        return specs

    @cached_property
    def device(self) -> str:
        """The torch device: the user's, else a GPU where there is one."""
        import torch

        chosen = self.job.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        kind, _, index = chosen.partition(":")
        if kind == "cuda" and not torch.cuda.is_available():
            raise HarnessError(
                f"--device {chosen}: this machine has no CUDA device that torch can use; try --device cpu"
            )
        if kind == "cuda" and index.isdigit() and int(index) >= torch.cuda.device_count():
            raise HarnessError(f"--device {chosen}: torch sees {torch.cuda.device_count()} CUDA device(s), from cuda:0")
        # lm-eval takes its own default in place of a name that it does not know
        if chosen not in ("cpu", "cuda", "mps", "mps:0") and not (kind == "cuda" and index.isdigit()):
            raise HarnessError(f"--device {chosen}: expected cpu, cuda, cuda:0, ... or mps")
        return chosen

    @cached_property
    def lm(self) -> "HarnessLM":
        """The model, loaded when the first run needs it and shared by all.

        Raises:
            ModelError: it cannot be loaded.
            UnsupportedModelError: its parts cannot be found.
        """
        from harness.evaluate.lm import HarnessLM

        job = self.job
        args = {"trust_remote_code": job.trust_remote_code, **job.model_args}
        source = self.source
        self.progress.say(f"loading {job.pretrained} on {self.device}")
        try:
            with collected_warnings("lm_eval", "transformers", "accelerate"):
                lm = HarnessLM(
                    pretrained=source.loadable,
                    fingerprint=source.fingerprint,
                    device=self.device,
                    batch_size=job.batch_size,
                    **args,
                )
        except HarnessError:
            raise
        except Exception as error:  # loading runs a stranger's configuration; whatever fails is about the model
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ModelError(f"model {job.pretrained!r} cannot be loaded: {reason}") from error
        if job.apply_chat_template:
            lm.use_chat_template(job.apply_chat_template)
        return lm

    def execute(self) -> list[RunRecord]:
        """Carry out every run that has no record yet; the records of all, in order.

        Every method is prepared and attached once before the first evaluation starts, so that a setting that this
        model refuses costs no hours.
        """
        pending = [spec for spec in self.specs if not self._done(spec)]
        if pending:
            self.store.check_writable()
        for spec in pending:
            with self.attached(spec):
                pass
        records = self._evaluate(pending)
        if len(records) < len(self.specs) or self.job.costs.measure <= {"flops"}:
            return records  # another process has some of them
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # the others have ended, and would be waited for
            self.progress.say("costs are measured by one process: give the same command without accelerate launch")
            return records
        self._measure_costs()
        return [self.folder(spec).record() for spec in self.specs]

    def _evaluate(self, pending: list[RunSpec]) -> list[RunRecord]:
        """The records of all runs, with their scores; on several processes, those that this one writes."""
        records: list[RunRecord] = []
        dense: dict[str, RunFolder] = {}
        for spec in self.specs:
            folder, baseline = self.folder(spec), dense.get(spec.task.name)
            if spec in pending:
                record = run(spec, self.lm, folder, self._preparation(spec), self.progress, baseline)
            else:
                self.progress.say(
                    f"{spec.stack.label} on {spec.task.name}: already there, nothing to do ({folder.path})"
                )
                record = self._finished(folder, baseline)
            if spec.stack.is_dense:
                dense[spec.task.name] = folder
            if record is not None:
                records.append(record)
        return records

    def _measure_costs(self) -> None:
        """The cost pass of every task, here or in a process of its own."""
        if self.job.costs.isolate:
            from harness.run.isolated import measure_isolated

            measure_isolated(self.job, self.store.root)
            return
        self.measure_costs()

    def measure_costs(self) -> None:
        """Complete the finished runs' records by what the job wants measured, task by task."""
        import torch

        from harness.run.costs import measure_costs

        for name, specs in groupby(self.specs, key=lambda spec: spec.task.name):
            try:
                measure_costs(self, list(specs))
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise HarnessError(
                    f"measuring costs on {name}: out of memory. The scores are kept: give the same command again when "
                    "memory is free, or with --measure flops."
                ) from error

    def attached(self, spec: RunSpec) -> AbstractContextManager[list[Prepared]]:
        """The model with a run's methods applied."""
        return spec.stack.applied(self.lm.decoder, self._preparation(spec))

    @cached_property
    def dense_shape(self) -> ModelShape:
        """The shape of the model with nothing attached."""
        return ModelShape.of(self.lm.decoder)

    def prepare(self, output: Path | None) -> list[tuple[RunSpec, list[Prepared]]]:
        """Do the slow, once-only work of every run and nothing else, and write the one method's state where asked.

        Raises:
            HarnessError: ``output`` is there already, the state of more than one method would go there, or that of a
                method that takes none.
        """
        if output is not None and (len(self.specs) > 1 or len(self.specs[0].stack.parts) > 1):
            raise HarnessError(f"--output_path {output}: one state goes into a folder; give one method and one task")
        if output is not None and "state" not in (part := self.specs[0].stack.parts[0]).params():
            raise HarnessError(
                f"--output_path {output}: {part.name} takes no state; its preparation is kept for itself"
            )
        if output is not None and output.exists():
            raise HarnessError(f"--output_path {output} is there already; a prepared state gets a folder of its own")
        prepared = []
        for spec in self.specs:
            preparation = self._preparation(spec)
            with spec.stack.applied(self.lm.decoder, preparation) as states:
                prepared.append((spec, states))
            if output is not None:
                states[0].save(output, preparation.key(spec.stack.parts[0], self.lm.decoder))
        return prepared

    def folder(self, spec: RunSpec) -> RunFolder:
        """Where a run's result is or will be."""
        return self.store.folder(spec.id, spec.stack.label, spec.model.name, spec.task.name)

    def _done(self, spec: RunSpec) -> bool:
        """Whether the run has a record to keep."""
        return self.job.resume and self.folder(spec).finished

    def _preparation(self, spec: RunSpec) -> Preparation:
        workbench = Workbench(cache_folder() / "searches", self.progress.say, self.progress.bar)
        calibration = spec.calibration and replace(spec.calibration, workbench=workbench)
        return Preparation(States.of_user(), calibration, self.progress.say)

    def _finished(self, folder: RunFolder, baseline: RunFolder | None) -> RunRecord:
        """A finished run's record, completed by the comparison if dense has been run only since."""
        try:
            record = folder.record()
        except StoreError as error:
            raise StoreError(f"{error}. Give --no_resume to compute the run again.") from error
        if baseline is not None and record.baseline is None:
            record = compared(record, folder.samples(), baseline)
            folder.rewrite(record)
        return record

    def _check_samples(self, loaded: LoadedTask) -> None:
        """Refuse documents that a task does not have."""
        for name, task in loaded.tasks.items():
            chosen = (self.job.samples or {}).get(name, [0])
            if max(chosen) >= len(task.eval_docs):
                raise HarnessError(
                    f"--samples: {name} has no document {max(chosen)}; it has 0 to {len(task.eval_docs) - 1}"
                )
