"""One run: attach the method, evaluate under observation, audit the counts, leave a record."""

import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from harness import environment
from harness.compare import by_key, paired, with_intervals
from harness.costs import Memory
from harness.errors import HarnessError
from harness.evaluate import outcome
from harness.evaluate.quiet import collected_warnings
from harness.journal import Journal, Served
from harness.measure.shape import ModelShape
from harness.method import Savings
from harness.prepared import Preparation, Prepared
from harness.record import MethodInfo, ModelInfo, RunRecord
from harness.spec import RunSpec
from harness.store import RunFolder

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM
    from harness.session import Progress

MISSING = {
    "time": "not measured: --measure asked for neither latency nor ideal",
    "energy": "not measured: --measure did not ask for energy",
    "memory.peak": "not measured: --measure did not ask for memory",
}
"""Of a record before its cost pass: the quality pass batches and observes requests, so its clock is no latency."""


@dataclass(frozen=True)
class _Evaluated:
    """What the evaluation left in memory."""

    results: dict[str, Any] | None
    served: list[Served]
    states: list[Prepared]
    shape: ModelShape
    savings: Savings
    kernels: dict[str, int]
    audit: float | None
    warnings: list[str]


def run(
    spec: RunSpec,
    lm: "HarnessLM",
    folder: RunFolder,
    preparation: Preparation,
    progress: "Progress",
    baseline: RunFolder | None,
) -> RunRecord | None:
    """Carry out a run, going on from its journal if there is one, and write its three files.

    On several processes (``accelerate launch``) every process calls this; the first one writes and returns the
    record, the others return None.

    Raises:
        HarnessError: something the user can act on; what is finished stays in the journal.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    dense = ModelShape.of(lm.decoder)
    with _explained(spec):
        evaluated = _evaluate(spec, lm, folder, preparation, progress)
    if evaluated.results is None:  # another process has them and writes
        return None
    lines = list(outcome.sample_lines(evaluated.results, evaluated.served, evaluated.shape, spec.job.samples))
    here = spec.environment.model_copy(update={"load_average": (*spec.environment.load_average, environment.load())})
    unchanged = outcome.same_work(evaluated.served, evaluated.shape, dense)
    flops = outcome.flops_info(evaluated.served, evaluated.shape, dense, evaluated.audit)
    record = RunRecord(
        id=spec.id,
        started=started,
        duration_s=round(time.perf_counter() - clock, 3),
        method=_method_info(spec, evaluated),
        model=_model_info(spec, lm, dense),
        evaluation=spec.evaluation,
        environment=here,
        scores=with_intervals(outcome.scores(evaluated.results), lines),
        trace=outcome.trace_totals(evaluated.served, unchanged=None if spec.stack.is_dense else unchanged),
        routes=None if spec.stack.is_dense else outcome.routes_info(evaluated.served),
        flops=flops,
        memory=Memory(weights=evaluated.shape.bytes, kv_peak=outcome.kv_peak(evaluated.served, evaluated.shape)),
        missing=MISSING
        | ({} if flops.audit_ratio is not None else {"flops.audit_ratio": "every answer came from the journal"}),
        warnings=outcome.broken_answers(evaluated.served) + evaluated.warnings,
    )
    if baseline is not None:
        record = compared(record, lines, baseline)
    folder.finish(record, lines, _manifest(spec, evaluated.shape))
    return record


def _evaluate(
    spec: RunSpec, lm: "HarnessLM", folder: RunFolder, preparation: Preparation, progress: "Progress"
) -> _Evaluated:
    """Evaluate under observation; everything attached is gone again when this returns."""
    from harness.evaluate.lm import Watch
    from harness.measure.trace import Tracer
    from harness.model.linear import kernels

    # random numbers that finished batches drew cannot be drawn again
    fresh = spec.draws_at_random or not spec.job.resume
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(folder.journal(lm.rank), lm.world_size, fresh))
        collector = stack.enter_context(collected_warnings("lm_eval", "harness"))
        states = stack.enter_context(spec.stack.applied(lm.decoder, preparation))
        shape = ModelShape.of(lm.decoder)
        savings, found = spec.stack.savings_on(lm.decoder), kernels(lm.decoder)
        tracer = stack.enter_context(Tracer(lm.decoder))
        bar = stack.enter_context(progress.bar(f"{spec.stack.label} · {spec.task.name}"))
        lm.watch = Watch(tracer, journal, bar)
        try:
            results = simple_evaluate(spec, lm)
            audit = lm.audit(shape)
        finally:
            lm.watch = None
        ranks = lm.gather_object(journal.served)
        served = [row for rank in ranks or () for row in rank if not row.is_padding]
        return _Evaluated(results, served, states, shape, savings, found, audit, collector.messages)


def simple_evaluate(
    spec: RunSpec, lm: "HarnessLM", samples: dict[str, list[int]] | None = None
) -> dict[str, Any] | None:
    """lm-eval's own evaluation of the task, with lm-eval's own defaults where the user gave nothing.

    ``samples`` asks for these documents instead of the job's.
    """
    from lm_eval import evaluator

    job = spec.job
    with _without_surveys(evaluator):
        results: dict[str, Any] | None = evaluator.simple_evaluate(
            model=lm,
            model_args={"pretrained": job.pretrained, **job.model_args},
            tasks=spec.task.objects,
            task_manager=spec.task.manager,
            num_fewshot=job.num_fewshot,
            batch_size=job.batch_size,
            device=spec.environment.device,
            limit=job.limit if samples is None else None,
            samples=job.samples if samples is None else samples,
            system_instruction=job.system_instruction,
            apply_chat_template=job.apply_chat_template,
            fewshot_as_multiturn=job.fewshot_as_multiturn and bool(job.apply_chat_template),
            gen_kwargs=job.gen_kwargs,
            random_seed=job.seeds[0],
            numpy_random_seed=job.seeds[1],
            torch_random_seed=job.seeds[2],
            fewshot_random_seed=job.seeds[3],
            confirm_run_unsafe_code=job.confirm_run_unsafe_code,
            predict_only=job.predict_only,
            write_out=job.write_out,
        )
    return results


@contextmanager
def _without_surveys(evaluator: Any) -> Iterator[None]:
    """Spare lm-eval its survey of the machine (pip list, lscpu, ...), made after every evaluation: seconds each.

    The record has an environment of its own.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(evaluator, "get_git_commit_hash", return_value=None))
        stack.enter_context(patch.object(evaluator, "add_env_info"))
        yield


@contextmanager
def _explained(spec: RunSpec) -> Iterator[None]:
    """Turn what an evaluation foreseeably dies of into a sentence."""
    import torch

    what = f"{spec.stack.label} on {spec.task.name}"
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise HarnessError(
            f"{what}: out of memory at batch size {spec.job.batch_size}. Finished documents are kept: give the same "
            "command again when memory is free, or a smaller --batch_size (which is another run)."
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        by = next((who for who in ("lm_eval", "transformers.generation") if _raised_by(who, error)), None)
        if by is None:
            raise
        reason = str(error) or "a request is empty or longer than the model allows (max_length)"
        raise HarnessError(f"{what}: {by.replace('_', '-')} refuses: {reason}") from error


def _raised_by(package: str, error: BaseException) -> bool:
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return frame is not None and f"{frame.tb_frame.f_globals.get('__name__')}.".startswith(f"{package}.")


def _method_info(spec: RunSpec, evaluated: _Evaluated) -> MethodInfo:
    stack = spec.stack
    return MethodInfo(
        label=stack.label,
        name=stack.name,
        family=stack.family,
        params=[part.params() for part in stack.parts],
        fingerprint=stack.fingerprint,
        savings=evaluated.savings.value,
        kernels=evaluated.kernels,
        exact=stack.exact,
        state=[state.facts for state in evaluated.states],
        calibration=spec.calibration.source if spec.calibration else None,
    )


def _model_info(spec: RunSpec, lm: "HarnessLM", dense: ModelShape) -> ModelInfo:
    module = lm.decoder.module
    return ModelInfo(
        name=spec.model.name,
        pretrained=spec.job.pretrained,
        revision=spec.model.revision,
        fingerprint=spec.model.fingerprint,
        dtype=str(module.dtype).removeprefix("torch."),
        attention=module.config._attn_implementation,
        layout=lm.decoder.anatomy.layout,
        layers=len(dense.layers),
        parameters=dense.parameters,
        args=spec.job.model_args,
    )


def compared(record: RunRecord, lines: Iterable[dict[str, Any]], baseline: RunFolder) -> RunRecord:
    """The record with its differences to the dense run of the same documents.

    Raises:
        StoreError: the dense run cannot be read.
        HarnessError: it has none of the documents.
    """
    dense = baseline.record()
    ours, theirs = by_key(record.id, lines), by_key(baseline.path, baseline.samples())
    if not ours.keys() & theirs.keys():
        raise HarnessError(f"{baseline.path} has none of this run's documents: compute it again with --no_resume")
    scores, found = paired(dense, record, theirs, ours)
    if record.baseline is not None:  # what was measured beside dense stays
        found = found.model_copy(
            update={"ratios": {**record.baseline.ratios, **found.ratios}, "noise": record.baseline.noise}
        )
    return record.model_copy(update={"scores": scores, "baseline": found})


def _manifest(spec: RunSpec, shape: ModelShape) -> dict[str, Any]:
    return {
        "id": spec.id,
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "identity": spec.identity,
        "environment": spec.environment.model_dump(mode="json"),
        "git": environment.git_state(),
        "tasks": {name: task.dump_config() for name, task in spec.task.tasks.items()},
        "shape": shape.model_dump(mode="json"),
    }
