"""``harness export``: the model as a method leaves it, in a folder that other programs load."""

import json
import shlex
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from harness.cli import arguments
from harness.core.errors import HarnessError
from harness.core.files import staged_folder

if TYPE_CHECKING:
    from harness.run.session import Session


def export(
    method: Annotated[str, Argument(help="name, or name:key=value,... ; dense writes the model as it is.")],
    output: Annotated[Path, Option("--output", "--output_path", "-o", help="A new folder for the model.")],
    pretrained: Annotated[
        str, Option("--pretrained", help="A folder, a GGUF file, a name of the hub, or one of `harness ls models`.")
    ] = "pocket",
    model_args: Annotated[
        list[str] | None, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")
    ] = None,
    tasks: Annotated[
        str, Option("--tasks", "--task", "-t", help="The task whose training split --calibration task reads.")
    ] = "pocket_choice",
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    calibration: Annotated[
        str, Option("--calibration", help="Text to prepare on: bundled, task (its training split), or a file.")
    ] = "bundled",
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write the model as a method leaves it: linear layers of few bits packed, all else as floats."""
    from harness.cli import display
    from harness.cli.run import build_job
    from harness.evaluate import quiet

    quiet.silence(None, offline=offline)
    if output.exists():
        raise HarnessError(f"--output {output} is there already; an exported model gets a folder of its own")
    job = build_job(
        methods=(method,),
        baseline=False,
        tasks=arguments.names([tasks]),
        pretrained=pretrained,
        model_args=arguments.key_values("--model_args", model_args or []),
        device=device,
        include_path=include_path,
        calibration=calibration,
    )
    from harness.contract.stack import parse
    from harness.model.weights.computations import DENSE
    from harness.model.weights.kernel_plan import stored_layers
    from harness.results.store import Store
    from harness.run.session import Session

    session = Session(job, Store(Path("runs")), display.Reporter())
    if stored_layers(parse(method).acting, session.plan.outline()):  # no kernel is timed for what does not run
        session = Session(job.model_copy(update={"kernel": DENSE}), session.store, session.progress)
    try:
        with redirect_stdout(sys.stderr):
            written = export_into(session, output)
    except KeyboardInterrupt:
        display.Reporter().say("stopped; nothing was written")
        raise Exit(130) from None
    if as_json:
        print(json.dumps(written, indent=2))  # noqa: T201
        return
    packed = "".join(f", {count} linear layers in {label}" for label, count in written["number_formats"].items())
    print(f"{output}: {written['bytes'] / 1e6:.1f} MB of weights ({written['format']}{packed})")  # noqa: T201
    print(f"run it with --pretrained {shlex.quote(str(output))}")  # noqa: T201


def export_into(session: "Session", output: Path) -> dict[str, Any]:
    """Export the one run of a session; what was written, which the folder's ``export.json`` says too.

    Raises:
        MethodError: what the method leaves cannot be expressed by a checkpoint.
    """
    from harness.model.checkpoints.fitting import marks, refuse_other_ways
    from harness.model.checkpoints.writer import write_model
    from harness.model.weights.kernel_plan import stored_layers

    (spec,) = session.plan.specs
    lm, label = session.lm_of(spec), spec.stack.label
    model, before = lm.decoder, marks(lm.decoder)
    places = stored_layers(spec.stack.acting, model)
    with spec.stack.applied(model, session.preparation(spec), places), staged_folder(output) as staging:
        refuse_other_ways(before, model, label)
        done = write_model(model, staging, label)
        model.tokenizer.save_pretrained(staging)
        written = {
            "method": label,
            "model": spec.loaded.name,
            "model_fingerprint": spec.loaded.fingerprint,
            "format": done.layout or "floats",
            "number_formats": done.numbers,
            "bytes": done.nbytes,
            "rounding": spec.loaded.rounding and spec.loaded.rounding.model_dump(),
            "harness": version("efficiency-harness"),
        }
        (staging / "export.json").write_text(json.dumps(written, indent=2) + "\n")
    return written
