"""One run: attach the method, evaluate under observation, audit the counts, leave a record."""

import shlex
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from harness.contract.facts import Savings
from harness.contract.loose import Kept, kept
from harness.contract.model_source import ModelSource
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.core import environment
from harness.core.errors import Enough
from harness.evaluate.evaluation import kinds, simple_evaluate
from harness.evaluate.journal import Journal, Served
from harness.evaluate.missing_scores import missing_scores
from harness.evaluate.outcome import summary
from harness.evaluate.quiet import collected_warnings
from harness.evaluate.refusals import explained
from harness.evaluate.shard import Shard
from harness.measure.shape import ModelShape
from harness.model.card import card_license
from harness.results.costs import Memory
from harness.results.intervals import with_intervals
from harness.results.record import MISSING, BaseInfo, MethodInfo, ModelInfo, RunRecord
from harness.results.saving import saving
from harness.results.sources import digest
from harness.results.store import RunFolder
from harness.run.command import command
from harness.run.completion import NOT_IDEALIZED
from harness.run.spec import RunSpec

if TYPE_CHECKING:
    from harness.core.progress import Progress
    from harness.evaluate.lm import HarnessLM
    from harness.evaluate.observed import Observed
    from harness.evaluate.replay import Replay


WAITING: Final = "another process is at this run: waiting; Ctrl-C to stop"
_UNCOUNTED: Final = (
    "flops",
    *(f"memory.{name}" for name in ("kv_peak", "kv_per_token", "kv_layers", "dense_kv_peak")),
    *(f"trace.{name}" for name in ("attention_layer_tokens", "mlp_layer_tokens", "layer_tokens_total")),
)
"""What is null in the record of a model whose layers are not seen."""


@dataclass(frozen=True)
class _Evaluated:
    """What the evaluation left in memory."""

    results: dict[str, Any] | None
    served: list[Served]
    states: list[Prepared]
    shape: ModelShape
    savings: Savings
    kernels: dict[str, int]
    replay: "Replay"
    warnings: list[str]


def evaluate(
    spec: RunSpec,
    lm: "HarnessLM",
    folder: RunFolder,
    preparation: Preparation,
    progress: "Progress",
    dense: ModelShape | None = None,
    spent_s: float = 0.0,
) -> None:
    """Evaluate a run, resuming from its journals if there are any, and write its three files.

    Another process that is at the same run is waited for, and what it finished is not done again. On several processes
    (``accelerate launch``) every process calls this, and the first one writes.

    Args:
        dense: the dense model, where ``lm`` is another checkpoint.
        spent_s: seconds that its shards took together.

    Raises:
        HarnessError: something the user can act on; what is finished stays in the journal.
    """
    # random numbers that finished batches drew cannot be drawn again
    fresh = spec.draws_at_random or not spec.job.resume
    # the processes of a launch cannot wait each for itself
    waiting = partial(progress.say, WAITING) if lm.world_size == 1 else None
    others = folder.shards if lm.world_size == 1 else ()
    with Journal(folder.journal(lm.rank), lm.world_size, fresh, waiting, others) as journal:
        if journal.waited and spec.job.resume and folder.finished:
            folder.clear_journals()
            return
        _carry_out(spec, lm, folder, journal, preparation, progress, dense, spent_s)


def evaluate_shard(
    spec: RunSpec,
    lm: "HarnessLM",
    folder: RunFolder,
    preparation: Preparation,
    progress: "Progress",
    shard: Shard,
) -> None:
    """Answer a part of a run's batches into a journal of its own, from which ``evaluate`` takes them.

    Raises:
        HarnessError: something the user can act on; what is finished stays in the journal.
    """
    path = folder.path / shard.journal
    others = [each for each in (folder.journal(0), *folder.shards) if each != path and each.exists()]
    waiting = partial(progress.say, WAITING)
    with Journal(path, waiting=waiting, others=others) as journal, ExitStack() as stack:
        if not folder.finished:
            stack.enter_context(explained(f"{spec.stack.label} on {spec.task.name}", spec.job.batch_size))
            stack.enter_context(spec.stack.applied(lm.decoder, preparation, spec.kernels.by_place))
            observed = _observed(spec, lm, journal, progress, stack, shard)
            with lm.answering(observed), suppress(Enough):
                simple_evaluate(lm, spec.task, spec.job)
    if folder.finished:  # by another process, meanwhile
        folder.clear_journals()


def _carry_out(
    spec: RunSpec,
    lm: "HarnessLM",
    folder: RunFolder,
    journal: Journal,
    preparation: Preparation,
    progress: "Progress",
    dense: ModelShape | None,
    spent_s: float,
) -> None:
    """Evaluate what the journal does not have, and write the result."""
    started, clock = datetime.now(UTC), time.perf_counter()
    own = ModelShape.of(lm.decoder)
    dense = dense or own
    with explained(f"{spec.stack.label} on {spec.task.name}", spec.job.batch_size):
        evaluated = _evaluate(spec, lm, journal, preparation, progress)
    if evaluated.results is None:  # another process has them and writes
        return
    outcome = summary(
        evaluated.results,
        evaluated.served,
        evaluated.shape,
        None if spec.stack.is_dense else dense,
        samples=spec.job.samples,
        audit=evaluated.replay.audit,
    )
    methods = kept(spec.stack.parts)
    here = spec.environment.model_copy(update={"load_average": (*spec.environment.load_average, environment.load())})
    record = RunRecord(
        id=spec.id,
        started=started,
        duration_s=round(spent_s + time.perf_counter() - clock, 3),
        command=command(spec),
        name=spec.job.name,
        method=_method_info(spec, evaluated, methods),
        model=_model_info(spec, lm, own),
        evaluation=spec.evaluation,
        environment=here,
        scores=with_intervals(outcome.scores, outcome.lines),
        # another checkpoint is another model, though it may do the same work
        trace=outcome.trace.model_copy(update={"executed": True}) if spec.checkpoint else outcome.trace,
        routes=outcome.routes,
        flops=outcome.flops,
        drafts=outcome.drafts,
        memory=Memory(
            weights=evaluated.shape.bytes,
            packed_weights=evaluated.shape.packed,
            kv_peak=None if dense.uncounted else outcome.cache.bytes,
            kv_per_token=None if dense.uncounted else outcome.cache.per_token,
            kv_layers=None if dense.uncounted else list(outcome.cache.layers),
            dense_weights=dense.bytes,
            dense_kv_peak=None if dense.uncounted else outcome.dense_kv_peak,
        ),
        sources={"scores": digest("scores")},
        missing=MISSING
        | ({"time": f"latency was not asked for, and {NOT_IDEALIZED}"} if spec.checkpoint else {})
        | missing_scores(evaluated.results, outcome.scores)
        | _uncounted(dense, outcome.unknown_flops, evaluated.replay.reason),
        warnings=outcome.warnings + evaluated.warnings + methods.notes,
    )
    record.method.savings = saving(record.model_dump(mode="json"))
    files = {name: file.content for name, file in methods.files.items()}
    folder.finish(record, outcome.lines, _manifest(spec, evaluated.shape), files)


def _evaluate(
    spec: RunSpec, lm: "HarnessLM", journal: Journal, preparation: Preparation, progress: "Progress"
) -> _Evaluated:
    """Evaluate under observation; everything attached is gone again when this returns."""
    from harness.model.weights.bit_operations import note
    from harness.model.weights.linear import kernel_counts
    from harness.model.weights.savings import savings

    with ExitStack() as stack:
        collector = stack.enter_context(collected_warnings("lm_eval", "harness"))
        states = stack.enter_context(spec.stack.applied(lm.decoder, preparation, spec.kernels.by_place))
        shape = ModelShape.of(lm.decoder)
        saved, kernels = savings(spec.stack, lm.decoder), kernel_counts(lm.decoder)
        observed = _observed(spec, lm, journal, progress, stack)
        with lm.answering(observed):
            results = simple_evaluate(lm, spec.task, spec.job)
        replay = observed.audit()
        ranks = lm.gather_object(journal.served)
        served = [row for rank in ranks or () for row in rank if not row.is_padding]
        warnings = spec.stack.notes + spec.kernels.notes + note(lm.decoder) + collector.messages
        return _Evaluated(results, served, states, shape, saved, kernels, replay, warnings)


def _observed(
    spec: RunSpec,
    lm: "HarnessLM",
    journal: Journal,
    progress: "Progress",
    stack: ExitStack,
    shard: Shard | None = None,
) -> "Observed":
    """What answers a run's requests under observation, as long as the stack is open."""
    from harness.evaluate.observed import Observed
    from harness.measure.trace import Tracer

    tracer = stack.enter_context(Tracer(lm.decoder))
    bar = stack.enter_context(progress.bar(f"{spec.stack.label} · {spec.task.name}"))
    of_kinds = partial(kinds, spec.task)
    return Observed(lm, tracer, journal, bar, spec.job.samples or {}, spec.context_first, shard, of_kinds)


def _uncounted(shape: ModelShape, unknown_flops: str | None, no_audit: str | None) -> dict[str, str]:
    """What of the counted work is null, and why."""
    if shape.uncounted is not None:
        return dict.fromkeys(_UNCOUNTED, shape.uncounted)
    if unknown_flops is not None:
        return dict.fromkeys(("flops", "time.roofline"), unknown_flops)
    return {"flops.audit_ratio": no_audit} if no_audit else {}


def _method_info(spec: RunSpec, evaluated: _Evaluated, methods: Kept) -> MethodInfo:
    stack = spec.stack
    return MethodInfo(
        label=stack.label,
        name=stack.name,
        family=stack.family,
        params=[part.params() for part in stack.parts],
        fingerprint=stack.fingerprint,
        savings=evaluated.savings.value,
        declared_real=evaluated.savings is Savings.REAL,
        kernels=evaluated.kernels,
        kernel_asked=spec.kernels.asked,
        kernel_slower=not spec.kernels.saves,
        exact=stack.exact,
        control=stack.acting[0].is_control,
        state=[state.facts for state in evaluated.states],
        calibration=spec.calibration.amount if spec.calibration else None,
        files={name: file.sha256 for name, file in methods.files.items()},
    )


def _model_info(spec: RunSpec, lm: "HarnessLM", shape: ModelShape) -> ModelInfo:
    """What was loaded; ``shape`` is its own, before methods are attached."""
    module, model, dense = lm.decoder.module, spec.loaded, spec.model
    base = BaseInfo(name=dense.name, pretrained=dense.pretrained, fingerprint=dense.fingerprint)
    return ModelInfo(
        name=model.name,
        pretrained=model.pretrained,
        revision=model.revision,
        fingerprint=model.fingerprint,
        dtype=str(module.dtype).removeprefix("torch."),
        attention=module.config._attn_implementation,
        layout=lm.decoder.anatomy.layout,
        layers=lm.decoder.config.num_hidden_layers if shape.uncounted else len(shape.layers),
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
        args=spec.job.model_args,
        license=card_license(model.folder),
        base=base if spec.checkpoint else None,
        rounding=model.rounding,
    )


def _manifest(spec: RunSpec, shape: ModelShape) -> dict[str, Any]:
    return {
        "id": spec.id,
        "command": shlex.join(["harness", *sys.argv[1:]]),
        "identity": spec.identity,
        "environment": spec.environment.model_dump(mode="json"),
        "git": environment.git_state(),
        "tasks": {name: _named(config, spec.model) for name, config in spec.task.configurations().items()},
        "shape": shape.model_dump(mode="json"),
    }


def _named(config: dict[str, Any], model: ModelSource) -> dict[str, Any]:
    """A task's configuration, in which the model goes by its name and not by its place in a cache."""
    metadata = config.get("metadata") or {}
    if metadata.get("pretrained") == model.loadable:
        return config | {"metadata": {**metadata, "pretrained": model.pretrained}}
    return config
