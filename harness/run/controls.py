"""A comparison with controls: what a method must beat at the share of the layers that it was seen to run.

A method's share is known once it has been evaluated, so there are two parts: the runs that were asked for, then those
of the controls; and last the costs of all of them together.
"""

from collections.abc import Iterator

from harness.core import environment
from harness.core.errors import HarnessError
from harness.evaluate.suites import TaskRequest
from harness.run.session import Session
from harness.run.spec import CostPlan, Job, RunSpec


def with_controls(session: Session) -> list[Session]:
    """Evaluate a job's methods, and give a session for each of its tasks, of the same methods and their controls.

    Raises:
        HarnessError: several processes share the job.
    """
    if environment.processes() > 1:
        raise HarnessError("--controls reads what runs executed, in one process: give it without accelerate launch")
    first = session.followed_by(session.job.model_copy(update={"costs": CostPlan()}))
    first.evaluate()
    sessions = []
    for task in dict.fromkeys(spec.task.name for spec in first.plan.specs):
        specs = first.plan.of_task(task)
        controls = [control for spec in specs for control in _controls(first, spec)]
        sessions.append(first.followed_by(_job(session.job, specs, controls)))
    return sessions


def _controls(session: Session, spec: RunSpec) -> Iterator[str]:
    """The controls of a finished run, as written on the command line; of methods that are stacked none."""
    if len(spec.stack.parts) > 1:
        return
    trace = session.folder(spec).record().trace
    attention, mlp = trace.attention_layer_tokens, trace.mlp_layer_tokens
    if attention is None or mlp is None or not trace.layer_tokens_total:
        return
    share = round((attention + mlp) / 2 / trace.layer_tokens_total, 4)  # as controls name it, who refuse less
    layers = len(session.plan.outline(spec.checkpoint).anatomy.blocks)
    controls = spec.stack.parts[0].controls(share, layers)
    if controls:
        session.progress.say(f"{spec.stack.label} ran {share:.1%} of the layers; its controls: {', '.join(controls)}")
    yield from controls


def _job(job: Job, specs: list[RunSpec], controls: list[str]) -> Job:
    """The job on one task, with controls after the methods that were asked for."""
    asked = [spec.stack.label for spec in specs if not spec.stack.is_dense] if job.method_args else job.methods
    changes = {
        "tasks": (TaskRequest(task=specs[0].task.name),),
        "methods": (*asked, *controls),
        "method_args": {},
        "costs": job.costs,
    }
    return specs[0].job.model_copy(update=changes)
