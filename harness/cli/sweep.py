"""``harness sweep``: a grid of runs, made by several workers; what is there is not made again."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from harness.cli import arguments
from harness.cli.run import checked_name
from harness.core.errors import HarnessError, UnknownNameError

if TYPE_CHECKING:
    from harness.sweep.launcher import Launcher

_Many = list[str] | None
_LAUNCHERS = ("local", "ray")
_OWN = ("output_path", "workers", "shards", "launcher", "address", "resources", "max_failures")
"""Keys of the file that say how the sweep is made, and not what."""


def sweep(
    file: Annotated[
        Path | None, Argument(help="YAML of what is asked, by the names of the flags of `run`; flags given here win.")
    ] = None,
    method: Annotated[
        _Many,
        Option("--method", "-m", help="As for `run`, with ranges: layer-drop:count=1..6, gptq:bits=3|4|8. Repeatable."),
    ] = None,
    tasks: Annotated[_Many, Option("--tasks", "--task", "-t", help="Task, group or tag names. Repeatable.")] = None,
    suite: Annotated[str | None, Option("--suite", help="Tasks with their flags, instead of --task.")] = None,
    pretrained: Annotated[_Many, Option("--pretrained", help="Models. Repeatable.")] = None,
    seed: Annotated[
        _Many, Option("--seed", help="Seeds: one number, four, or a range such as 0..4. Repeatable.")
    ] = None,
    model_args: Annotated[_Many, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")] = None,
    num_fewshot: Annotated[int | None, Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[int | None, Option("--batch_size", "-b", min=1, help="Rows per forward.")] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; else each worker its GPU.")] = None,
    limit: Annotated[
        float | None, Option("--limit", "-L", help="First n documents of each task, or a share below 1.")
    ] = None,
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    calibration: Annotated[str | None, Option("--calibration", help="Text to prepare on.")] = None,
    measure: Annotated[
        _Many,
        Option(
            "--measure",
            envvar="HARNESS_MEASURE",
            help="What is measured beside the scores, of flops,ideal,latency,memory,energy, when all scores are there.",
        ),
    ] = None,
    name: Annotated[
        str | None, Option("--name", help="What you call these runs: `harness ls runs --name NAME` lists them.")
    ] = None,
    output_path: Annotated[Path | None, Option("--output_path", "-o", help="Folder of results; else runs.")] = None,
    workers: Annotated[
        int | None, Option("--workers", "-w", min=1, help="Processes side by side; else one a GPU, or one.")
    ] = None,
    shards: Annotated[
        int | None, Option("--shards", min=1, help="Parts of each run that workers take side by side; else 1.")
    ] = None,
    launcher: Annotated[
        str | None, Option("--launcher", help="local: processes of this machine. ray: workers of a Ray cluster.")
    ] = None,
    address: Annotated[
        str | None, Option("--address", help="With ray: the cluster, as host:port; auto for the one of this machine.")
    ] = None,
    resources: Annotated[
        str | None,
        Option("--resources", help="With ray: what a worker asks for: num_cpus=4,num_gpus=1, or one of your own."),
    ] = None,
    retry_failed: Annotated[bool, Option("--retry_failed", help="Make runs again that failed before.")] = False,
    max_failures: Annotated[
        int | None, Option("--max_failures", min=1, help="End when so many runs have failed.")
    ] = None,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    dry_run: Annotated[
        bool, Option("--dry_run", help="Print the plan, the run ids and how long it will take, and stop.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print the plan, or what came of the runs, as JSON.")] = False,
) -> None:
    """Make every run of a grid of methods, tasks, models and seeds; a run that fails is recorded, the rest goes on.

    The same command again makes what is missing: runs that are there are not made again.
    """
    from harness.cli.sweep_display import Lines, Table, plan, results
    from harness.evaluate import quiet

    quiet.silence(offline=offline)
    flags = {
        "methods": method,
        "tasks": tasks,
        "suite": suite,
        "pretrained": pretrained,
        "seeds": seed,
        "model_args": arguments.key_values("--model_args", model_args or []) or None,
        "num_fewshot": num_fewshot,
        "batch_size": batch_size,
        "device": device,
        "limit": limit,
        "include_path": include_path,
        "calibration": calibration,
        "measure": list(arguments.names(measure)) if measure else None,
        "name": name,
        "output_path": output_path,
        "workers": workers,
        "shards": shards,
        "launcher": launcher,
        "address": address,
        "resources": arguments.key_values("--resources", [resources]) if resources else None,
        "max_failures": max_failures,
    }
    from harness.sweep import request as requests

    given = requests.merged(requests.read(file) if file else {}, flags)
    own = {key: given.pop(key, None) for key in _OWN}
    for key in ("workers", "shards", "max_failures"):
        if own[key] is not None and (type(own[key]) is not int or own[key] < 1):
            raise HarnessError(f"{key}: expected a whole number from 1, got {own[key]!r}")
    for key in ("output_path", "launcher", "address"):
        if not isinstance(own[key], str | Path | None):
            raise HarnessError(f"{key}: expected a text, got {own[key]!r}")
    if not isinstance(own["resources"], dict | None):
        raise HarnessError(f"resources: expected a mapping such as {{num_cpus: 4}}, got {own['resources']!r}")
    if "name" in given:
        given["name"] = checked_name(str(given["name"]))
    given.setdefault("measure", ["flops", "ideal", "latency", "memory"])
    from harness.results.store import Store
    from harness.sweep.board import Board
    from harness.sweep.grid import Grid
    from harness.sweep.pace import Pace
    from harness.sweep.sweep import Sweep

    request = requests.asked(given)
    store = Store(Path(own["output_path"] or "runs"))
    watcher = Table() if sys.stderr.isatty() else Lines()
    grid = Grid(request, store, watcher, retry_failed, Pace.read(store.folders()))
    with redirect_stdout(sys.stderr):  # libraries and tasks print; standard output is for results
        grid.check()
    launched, measuring = _launcher(own, store.root, request.settings.get("device"), watcher.say)
    if dry_run:
        plan(grid, launched, as_json=as_json)
        return
    board = Board(launched.workers, expected_s=grid.expected_s)
    try:
        with redirect_stdout(sys.stderr), watcher.watching(board):
            parts = own["shards"] or 1
            Sweep(grid, store, launched, watcher, board, own["max_failures"], parts, measuring).run()
    except KeyboardInterrupt:
        watcher.say("stopped. Finished runs and documents are kept: give the same command again to go on.")
        raise Exit(130) from None
    results(grid, board, watcher, as_json=as_json)
    if board.counts["failed"] or board.unfinished or board.counts["refused"] or board.counts["failed before"]:
        raise Exit(1)


def _launcher(
    own: dict[str, Any], results: Path, device: str | None, say: Callable[[str], None]
) -> tuple["Launcher", int]:
    """The launcher that was asked for, and how many machines it has to measure costs on."""
    name = own["launcher"] or "local"
    if name not in _LAUNCHERS:
        raise UnknownNameError("launcher", name, _LAUNCHERS, see=f"--launcher takes: {', '.join(_LAUNCHERS)}.")
    workers = own["workers"]
    if name == "ray":
        from harness.sweep.on_ray import Ray

        cluster = Ray.joined(own["address"] or "auto", results, workers, own["resources"] or {})
        for note in cluster.notes:
            say(note)
        return cluster, cluster.measuring
    for flag in ("address", "resources"):
        if own[flag]:
            raise HarnessError(f"--{flag} is of a Ray cluster: give --launcher ray with it")
    from harness.sweep.local import Local

    return Local.here(results, workers, device), 1
