"""``harness prepare``: a method's slow, once-only work, to be kept or shared, without evaluating anything."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Exit, Option

from harness.cli import arguments
from harness.core.errors import HarnessError
from harness.core.files import writing

if TYPE_CHECKING:
    from harness.run.session import Session


def prepare(
    method: Annotated[list[str], Option("--method", "-m", help="name, or name:key=value,... Repeatable.")],
    tasks: Annotated[
        list[str], Option("--tasks", "--task", "-t", help="The tasks whose training split the method prepares on.")
    ],
    pretrained: Annotated[
        str, Option("--pretrained", help="A folder, a GGUF file, a name of the hub, or one of `harness ls models`.")
    ] = "pocket",
    model_args: Annotated[
        list[str] | None, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")
    ] = None,
    num_fewshot: Annotated[int | None, Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    calibration: Annotated[
        str, Option("--calibration", help="Text to prepare on: task (its training split), bundled, or a file.")
    ] = "task",
    trust_remote_code: Annotated[bool, Option("--trust_remote_code", help="Run the model repository's code.")] = False,
    output_path: Annotated[
        Path | None,
        Option("--output_path", "-o", help="A new folder for the state, to be used as NAME:state=FOLDER."),
    ] = None,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Search, train or calibrate what methods need, as a run would; a killed preparation goes on where it stopped."""
    from harness.cli import display
    from harness.cli.run import build_job
    from harness.evaluate import quiet

    quiet.silence(None, offline=offline)
    job = build_job(
        methods=tuple(method),
        baseline=False,
        tasks=arguments.names(tasks),
        pretrained=pretrained,
        model_args=arguments.key_values("--model_args", model_args or []),
        num_fewshot=num_fewshot,
        device=device,
        include_path=include_path,
        calibration=calibration,
        trust_remote_code=trust_remote_code,
    )
    from harness.results.store import Store
    from harness.run.session import Session

    session = Session(job, Store(Path("runs")), display.Reporter())
    for stack in session.plan.stacks:
        if not stack.needs_preparation:
            raise HarnessError(f"{stack.label} needs no preparation: run it")
    try:
        with redirect_stdout(sys.stderr):
            session.check_calibrations(session.plan.specs)
            preparations = _prepared(session) if output_path is None else [prepare_into(session, output_path)]
    except KeyboardInterrupt:
        display.Reporter().say("stopped. Finished parts are kept: give the same command again to go on.")
        raise Exit(130) from None

    if as_json:
        print(json.dumps(preparations, indent=2))  # noqa: T201
    else:
        display.prepared(preparations, output_path)


def _prepared(session: "Session") -> list[dict[str, Any]]:
    """Prepare every run of the job; what was found, run by run."""
    preparations = []
    for spec in session.plan.specs:
        with session.attached(spec) as states:
            facts = [state.facts for state in states]
        preparations.append({"method": spec.stack.label, "task": spec.task.name, "state": facts})
    return preparations


def prepare_into(session: "Session", output: Path) -> dict[str, Any]:
    """Prepare the one run of the job and write its state.

    Raises:
        HarnessError: more than one state would go into the folder, the method takes none, or the folder is there or
            being written.
    """
    from filelock import FileLock, Timeout

    from harness.contract.mixins import Shareable

    specs = session.plan.specs
    if len(specs) > 1 or len(specs[0].stack.parts) > 1:
        raise HarnessError(f"--output_path {output}: one state goes into a folder; give one method and one task")
    (spec,), (part,) = specs, specs[0].stack.parts
    if not isinstance(part, Shareable):
        raise HarnessError(f"--output_path {output}: {part.name} takes no state; its preparation is kept for itself")
    try:
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock := output.with_name(f".{output.name}.lock"), blocking=False):
            if output.exists():
                raise HarnessError(
                    f"--output_path {output} is there already; a prepared state gets a folder of its own"
                )
            preparation = session.preparation(spec)
            with spec.stack.applied(session.lm.decoder, preparation, spec.kernels.by_place) as (state,):
                facts = [state.facts]
            state.save(output, preparation.key(part, session.lm.decoder), spec.stack.label)
            lock.unlink(missing_ok=True)
    except Timeout as error:
        raise HarnessError(f"--output_path {output}: another process is writing it") from error
    return {"method": spec.stack.label, "task": spec.task.name, "state": facts}
