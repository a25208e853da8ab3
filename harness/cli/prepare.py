"""``harness prepare``: a method's slow, once-only work, to be kept or shared, without evaluating anything."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

from typer import Exit, Option

from harness.cli import arguments
from harness.core.errors import HarnessError


def prepare(
    method: Annotated[list[str], Option("--method", "-m", help="name, or name:key=value,... Repeatable.")],
    tasks: Annotated[
        list[str], Option("--tasks", "--task", "-t", help="The tasks whose training split the method prepares on.")
    ],
    pretrained: Annotated[str, Option("--pretrained", help="Hugging Face model name or folder.")] = "pocket",
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
    for stack in session.stacks:
        if not stack.needs_preparation:
            raise HarnessError(f"{stack.label} needs no preparation: run it")
    try:
        with redirect_stdout(sys.stderr):
            prepared = session.prepare(output_path)
    except KeyboardInterrupt:
        display.Reporter().say("stopped. Finished parts are kept: give the same command again to go on.")
        raise Exit(130) from None
    found: list[dict[str, Any]] = [
        {"method": spec.stack.label, "task": spec.task.name, "state": [state.facts for state in states]}
        for spec, states in prepared
    ]
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201
    else:
        display.prepared(found, output_path)
