"""The plan of a job: every run that was asked for, with its id, before anything slow is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from harness.contract.decoder import Decoder
from harness.contract.model_source import ModelSource
from harness.contract.stack import Stack, parse
from harness.contract.study import Needs, Study
from harness.core import environment
from harness.core.environment import Environment
from harness.core.errors import HarnessError, MethodError, UnknownNameError
from harness.core.source import read_once
from harness.evaluate.calibration_text import calibration_for
from harness.evaluate.quiet import collected_warnings
from harness.evaluate.suites import TaskRequest
from harness.evaluate.tasks import LoadedTask, Overrides, TaskLoader, refuse_shots, refuse_without_prompt
from harness.model.conversions import Say
from harness.model.source import BUNDLED, BUNDLED_NAME
from harness.model.weights.computations import ChoosesKernels
from harness.model.weights.kernel_plan import KernelPlan, check_asked, plan_kernels
from harness.run.loading import beside, device_of, outline, require_comparable, source_of
from harness.run.score_mode import score_mode
from harness.run.spec import Job, ModelSettings, RunSpec
from harness.run.units import Unit


@dataclass
class Plan:
    """What a job comes to; ``say`` is told what takes a while.

    Raises, each when it is first asked for:
        UnknownNameError: an unknown method, task or argument of one.
        MethodError: a method that cannot do what is asked.
        ModelError, TaskError: the model or a task's data is not there.
    """

    job: Job
    say: Say = lambda _: None
    _calibrations: dict[str, Study] = field(default_factory=dict)
    _limited: dict[tuple[str, Needs], Study] = field(default_factory=dict)
    _checkpoints: dict[str, ModelSource | None] = field(default_factory=dict)
    _outlines: dict[str, Decoder] = field(default_factory=dict)
    _suited: set[str] = field(default_factory=set)  # fingerprints of stacks that can run
    _loaded: dict[str, tuple[LoadedTask, str]] = field(default_factory=dict)  # tasks, with digests of their documents

    @cached_property
    def stacks(self) -> list[Stack]:
        """The methods, dense first unless switched off, each once."""
        args = self.job.method_args
        stacks = [parse(text, args if text != "dense" else None) for text in self.job.methods]
        if self.job.baseline:
            stacks = [parse("dense"), *stacks]
        for stack in stacks:
            stack.check_order()
        with read_once():
            return list({stack.fingerprint: stack for stack in stacks}.values())

    @cached_property
    def source(self) -> ModelSource:
        """Where the model is."""
        return source_of(self.job, self.say)

    @cached_property
    def device(self) -> str:
        """The torch device that the model goes to."""
        return device_of(self.job)

    @cached_property
    def machine(self) -> Environment:
        """The machine and the software that the plan is for."""
        return environment.observe(self.device)

    @cached_property
    def kernels(self) -> dict[str, KernelPlan]:
        """What computes the linear layers of each stack here, by its fingerprint."""
        if self.job.kernel is not None:
            parts = [part for stack in self.stacks for part in stack.acting]
            check_asked(self.job.kernel, parts, self.outline(), self.device)
        return {stack.fingerprint: self._kernels(stack) for stack in self.stacks}

    @cached_property
    def specs(self) -> list[RunSpec]:
        """Every run: all methods of the first task, then of the next."""
        for stack in self.stacks:  # a wrong method costs no loading of tasks
            self._check(stack)
        kernels, machine = self.kernels, self.machine
        specs = [
            RunSpec(
                job=job,
                stack=stack,
                task=task,
                model=self.source,
                environment=machine,
                data=data,
                calibration=self._calibration(stack, task),
                score_mode=mode,
                kernels=kernels[stack.fingerprint],
                checkpoint=self._checkpoint(stack),
            )
            for job, task, data in self._tasks()
            for mode in [score_mode(job.score_mode, job.score_suffix, self.stacks, task)]
            for stack in self.stacks
        ]
        leaves = {leaf for spec in specs for leaf in spec.task.tasks}
        for name in self.job.samples or {}:
            if name not in leaves:
                raise UnknownNameError("task in --samples", name, leaves)
        return specs

    @property
    def notes(self) -> list[str]:
        """What was chosen for the user and changes what is computed, and what was asked for in vain, as sentences."""
        chosen = self.job.score_mode is None and self.job.score_suffix is None
        tasks = [spec.task.name for spec in self.specs if spec.score_mode == "context-first"] if chosen else []
        decoding = next((stack.label for stack in self.stacks if stack.only_decodes), "")
        notes = [
            f"{task} is scored context first by all methods: {decoding} changes nothing while a text is read"
            for task in dict.fromkeys(tasks)
        ]
        suffix = None if self.job.score_suffix is None else "--score_suffix"
        asked = suffix or (self.job.score_mode == "context-first" and "--score_mode context-first")
        generating = [spec.task.name for spec in self.specs if spec.score_mode != "context-first"] if asked else []
        if generating:
            notes.append(f"{asked} has no effect on {', '.join(dict.fromkeys(generating))}, where nothing is scored")
        return notes + self._made_for_another()

    def _made_for_another(self) -> list[str]:
        """Which tasks were made for the bundled model, where another one is evaluated."""
        if self.source.folder == BUNDLED:
            return []
        leaves = {name: task.config.metadata or {} for spec in self.specs for name, task in spec.task.tasks.items()}
        return [
            f"{name} was made for the bundled model: others may do no better than chance there, where no method can be "
            "seen to lose anything; `harness ls tasks` says what is known"
            for name, metadata in leaves.items()
            if metadata.get("made_for") == BUNDLED_NAME
        ]

    def reseeded(self, job: Job) -> "Plan":
        """The plan of a job that differs in its seeds alone, with what does not depend on them.

        Its tasks are those of this plan, which draw their examples by the new seed from now on.
        """
        plan = Plan(job, self.say, _outlines=self._outlines, _checkpoints=self._checkpoints, _suited=self._suited)
        names = ("stacks", "source", "device", "machine", "kernels", "_loader", "_requests")
        vars(plan).update({name: value for name, value in vars(self).items() if name in names})
        plan._loaded = {name: (task.reseeded(job.seeds[3]), data) for name, (task, data) in self._loaded.items()}
        if not any(stack.needs.questions for stack in self.stacks):  # which are asked after examples that are drawn
            plan._calibrations, plan._limited = self._calibrations, self._limited
        return plan

    def refusal(self, stack: Stack) -> str | None:
        """Why a stack cannot run with the job's settings on its model; None where it can."""
        try:
            self._check(stack)
        except HarnessError as error:
            return str(error)
        return None

    def units(self) -> list[Unit]:
        """The parts of the job that can be carried out by themselves, in an order that can be kept: model by model."""
        tasks = list(dict.fromkeys(spec.task.name for spec in self.specs))
        units = [Unit(kind="quality", task=spec.task.name, run=spec.id) for spec in by_model(self.specs)]
        if not self.job.costs.measure <= {"flops"}:
            units += [Unit(kind="costs", task=task) for task in tasks]
        return units

    def spec(self, unit: Unit) -> RunSpec:
        """The run of a unit that is about one.

        Raises:
            HarnessError: this process comes to other ids than the one that made the unit.
        """
        for spec in self.specs:
            if spec.id == unit.run:
                return spec
        raise HarnessError(f"{unit.task}: no run has the id {unit.run} here; ids depend on processor and versions")

    def of_task(self, task: str) -> list[RunSpec]:
        """The runs on one task, dense first where there is one."""
        return [spec for spec in self.specs if spec.task.name == task]

    def settings_of(self, checkpoint: ModelSource | None) -> ModelSettings:
        """How the model is loaded, or a checkpoint beside it."""
        return self.job if checkpoint is None else beside(self.job, checkpoint, self.outline().module.dtype)

    def outline(self, checkpoint: ModelSource | None = None) -> Decoder:
        """The model without its weights, or a checkpoint beside it."""
        source = checkpoint or self.source
        if source.fingerprint not in self._outlines:
            self._outlines[source.fingerprint] = outline(self.settings_of(checkpoint), source)
        return self._outlines[source.fingerprint]

    def _checkpoint(self, stack: Stack) -> ModelSource | None:
        """The model that the stack runs on, where it is not the job's own."""
        if stack.fingerprint not in self._checkpoints:
            source = stack.checkpoint(self.source)
            other = None if source.fingerprint == self.source.fingerprint else source
            if other is not None:
                require_comparable(self.job, self.source, other, stack.label)
            self._checkpoints[stack.fingerprint] = other
        return self._checkpoints[stack.fingerprint]

    def _kernels(self, stack: Stack) -> KernelPlan:
        """What computes the stack's linear layers here."""
        if not any(isinstance(part, ChoosesKernels) for part in stack.acting):
            return KernelPlan()
        return plan_kernels(stack.acting, self.outline(self._checkpoint(stack)), self.device, self.job.kernel)

    def _check(self, stack: Stack) -> None:
        """Refuse what cannot run with the job's settings on its model."""
        if stack.fingerprint in self._suited:
            return
        if self.job.batch_size > 1 and not stack.batchable:
            raise MethodError(f"{stack.label}: rows of a batch influence each other; give --batch_size 1")
        stack.check_model(lambda: self.outline(self._checkpoint(stack)))
        self._suited.add(stack.fingerprint)

    @cached_property
    def _loader(self) -> TaskLoader:
        job = self.job
        return TaskLoader(job.include_path, {"pretrained": self.source.loadable, **job.model_args, **job.metadata})

    @cached_property
    def _requests(self) -> dict[str, TaskRequest]:
        """What was asked of each task, by its name; the first time counts."""
        requests: dict[str, TaskRequest] = {}
        for request in self.job.tasks:
            for name in self._loader.resolve([request.task]):
                requests.setdefault(name, request)
        return requests

    def _tasks(self) -> Iterator[tuple[Job, LoadedTask, str]]:
        """Each task loaded, with the job as it is for this task and the digest of its documents."""
        for name, request in self._requests.items():
            job = self.job.asking(request)
            if name not in self._loaded:
                self._loaded[name] = self._load(name, job)
            yield job, *self._loaded[name]

    def _load(self, name: str, job: Job) -> tuple[LoadedTask, str]:
        """A task that the model and the methods can be asked, with the digest of its documents."""
        with collected_warnings("lm_eval", "datasets"):
            task = self._loader.load(name, Overrides(job.num_fewshot, job.gen_kwargs, job.seeds[3]))
        self._refuse_samples(task)
        refuse_shots(task)
        for stack in self.stacks:
            if stack.pools_prompt:
                refuse_without_prompt(stack.label, task)
        return task, task.fingerprint(job.limit, job.samples)

    def _refuse_samples(self, loaded: LoadedTask) -> None:
        """Refuse documents that a task does not have."""
        for name, task in loaded.tasks.items():
            chosen = (self.job.samples or {}).get(name, [0])
            if max(chosen) >= len(task.eval_docs):
                raise HarnessError(
                    f"--samples: {name} has no document {max(chosen)}; it has 0 to {len(task.eval_docs) - 1}"
                )

    def _calibration(self, stack: Stack, task: LoadedTask) -> Study | None:
        """What the stack's preparation may look at, of what is read once for the task, whatever each stack needs."""
        if not stack.needs_preparation:
            return None
        if task.name not in self._calibrations:
            needs = Needs.of_all(stack.needs for stack in self.stacks)
            self._calibrations[task.name] = calibration_for(task, self.job.calibration, needs)
        place = (task.name, stack.needs)
        if place not in self._limited:  # one for all stacks that need the same: its digest takes a while
            self._limited[place] = self._calibrations[task.name].limited(stack.needs)
        return self._limited[place]


def by_model(specs: Sequence[RunSpec]) -> list[RunSpec]:
    """Runs in their order, but all of one model before those of the next, so that each is loaded once."""
    models = list(dict.fromkeys(spec.loaded.fingerprint for spec in specs))
    return sorted(specs, key=lambda spec: models.index(spec.loaded.fingerprint))
