"""``harness tune``: a search for the best settings under budgets, chosen on some documents and reported on others."""

import sys
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Exit, Option

from harness.cli import arguments
from harness.core.errors import SpecError

if TYPE_CHECKING:
    from harness.run.plan import Plan
    from harness.sweep.tuning.space import Space
    from harness.sweep.tuning.trials import Trials

_Many = list[str] | None
_EVALUATIONS, _VALIDATION = 60, 100.0
_OWN = (
    *("space", "objectives", "budget", "evals", "population", "validation", "limit", "seed", "controls"),
    *("output_path", "workers"),
)
"""Keys of the file that are the search's own; the others are settings of its runs."""


def tune(
    file: Annotated[
        Path | None, Argument(help="YAML of what is asked, by the names of these flags and those of `run`; flags win.")
    ] = None,
    space: Annotated[
        _Many,
        Option(
            "--space",
            help="Methods and settings: layer-drop,int4-weight-only:bits=3|4|8. A name alone: from nothing to its "
            "default. @layer after a method: each layer by itself.",
        ),
    ] = None,
    objectives: Annotated[
        _Many,
        Option(
            "--objectives",
            help="What is to be small: loss, and costs such as bytes, flops or latency; else loss,bytes.",
        ),
    ] = None,
    budget: Annotated[_Many, Option("--budget", help="The most that a cost may be, times dense's: flops=0.7.")] = None,
    evals: Annotated[int | None, Option("--evals", min=1, help="Candidates to measure; else 60.")] = None,
    population: Annotated[
        int | None, Option("--population", min=1, help="Candidates of a round; else a quarter of --evals, at most 50.")
    ] = None,
    tasks: Annotated[_Many, Option("--tasks", "--task", "-t", help="One task or group.")] = None,
    pretrained: Annotated[str | None, Option("--pretrained", help="The model; else the bundled one.")] = None,
    validation: Annotated[
        float | None,
        Option("--validation", help="Documents of each task to choose on, or a share below 1; else 100, at most half."),
    ] = None,
    limit: Annotated[
        float | None, Option("--limit", "-L", help="Take the first n documents of each task alone, or a share below 1.")
    ] = None,
    seed: Annotated[
        int | None, Option("--seed", min=0, help="Of the search and of dealing out documents; else 0.")
    ] = None,
    controls: Annotated[
        bool | None, Option("--controls/--no_controls", help="Measure random and uniform candidates too.")
    ] = None,
    model_args: Annotated[_Many, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")] = None,
    num_fewshot: Annotated[int | None, Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[int | None, Option("--batch_size", "-b", min=1, help="Rows per forward.")] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; else each worker its GPU.")] = None,
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    calibration: Annotated[str | None, Option("--calibration", help="Text to prepare on.")] = None,
    name: Annotated[str | None, Option("--name", help="What you call these runs.")] = None,
    output_path: Annotated[Path | None, Option("--output_path", "-o", help="Folder of results; else runs.")] = None,
    workers: Annotated[
        int | None, Option("--workers", "-w", min=1, help="Processes side by side; else one a GPU, or one.")
    ] = None,
    retry_failed: Annotated[bool, Option("--retry_failed", help="Make runs again that failed before.")] = False,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    dry_run: Annotated[bool, Option("--dry_run", help="Print what would be searched, and stop.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print what came of it as JSON.")] = False,
) -> None:
    """Search methods' strengths and settings under budgets, by predictors and NSGA-II, beside random and uniform ones.

    Every candidate is a run: the same command again goes on where it stopped, and makes nothing twice.
    """
    from harness.evaluate import quiet

    quiet.silence(offline=offline)
    from harness.cli import tune_display
    from harness.cli.run import checked_name
    from harness.cli.sweep_display import Lines, Table
    from harness.results.budgets import budgets
    from harness.results.store import Store
    from harness.sweep import request as requests
    from harness.sweep.local import Local
    from harness.sweep.tuning import genetic
    from harness.sweep.tuning.documents import dealt
    from harness.sweep.tuning.kept import Kept
    from harness.sweep.tuning.metrics import KNOWN, Metrics
    from harness.sweep.tuning.trials import Trials
    from harness.sweep.tuning.tuning import Tuning

    flags = {
        "space": space,
        "objectives": objectives,
        "budget": budget,
        "evals": evals,
        "population": population,
        "tasks": tasks,
        "pretrained": pretrained,
        "validation": validation,
        "limit": limit,
        "seed": seed,
        "controls": controls,
        "model_args": arguments.key_values("--model_args", model_args or []) or None,
        "num_fewshot": num_fewshot,
        "batch_size": batch_size,
        "device": device,
        "include_path": include_path,
        "calibration": calibration,
        "name": checked_name(name),
        "output_path": output_path,
        "workers": workers,
    }
    settings = requests.merged(requests.read(file) if file else {}, flags)
    own = {key: settings.pop(key, None) for key in _OWN}
    _check_numbers(own)
    genetic.require_optuna()
    given = _texts(own["budget"])
    metrics = Metrics.asked(_words(own["objectives"]) or ("loss", "bytes"), budgets(given, KNOWN[1:]))
    store = Store(Path(own["output_path"] or "runs"))
    screen = Table() if sys.stderr.isatty() else Lines()
    launcher = Kept(Local.here(store.root, own["workers"], settings.get("device")))
    trials = Trials(settings, metrics.measured, store, launcher, screen, retry_failed)
    with redirect_stdout(sys.stderr):  # libraries and tasks print; standard output is for results
        plan = _planned(trials)
        searched = _space(own["space"], plan)
        trials.settings = {**settings, "score_mode": _score_mode(searched, plan)}
        task = plan.specs[0].task
        documents = dealt(
            task, own["validation"] or _VALIDATION, own["limit"] or plan.specs[0].job.limit, own["seed"] or 0
        )
    tuning = Tuning(
        searched,
        metrics,
        documents,
        trials,
        evaluations=min(own["evals"] or _EVALUATIONS, searched.count),
        seed=own["seed"] or 0,
        population=own["population"],
        controls=own["controls"] is not False,
    )
    if dry_run:
        tune_display.plan(tuning, as_json=as_json)
        return
    store.check_writable()
    try:
        with redirect_stdout(sys.stderr), closing(launcher):
            tuned = tuning.run()
    except KeyboardInterrupt:
        screen.say("stopped. Finished runs and documents are kept: give the same command again to go on.")
        raise Exit(130) from None
    tune_display.results(tuned, documents, as_json=as_json)
    if not tuned.chosen:
        raise Exit(1)


def _planned(trials: "Trials") -> "Plan":
    """The plan of dense on all documents, of one task, model and seed.

    Raises:
        HarnessError: a setting that cannot be, or several tasks, models or seeds.
    """
    request = trials.request(["dense"], None)
    for what, given in (("task", request.tasks), ("model", request.pretrained), ("seed of runs", request.seeds)):
        if len(given) > 1:
            raise SpecError(f"harness tune searches for one {what}, and {len(given)} are given: give one")
    plan = trials.plan(["dense"])
    names = list(dict.fromkeys(spec.task.name for spec in plan.specs))
    if len(names) > 1:
        raise SpecError(f"harness tune searches for one task, and {', '.join(names[:4])} are given: give one")
    return plan


def _space(given: Any, plan: "Plan") -> "Space":
    from harness.sweep.tuning.space import space

    if not given:
        raise SpecError("which settings? Give --space, such as layer-drop,int4-weight-only:bits=3|4|8")
    listed = given if isinstance(given, list) else [given]
    return space([each for each in listed if each], len(plan.outline().anatomy.blocks))


def _score_mode(searched: "Space", plan: "Plan") -> str:
    """One way of scoring for all candidates, whichever methods a round has."""
    from harness.contract.stack import parse
    from harness.run.score_mode import score_mode

    stacks = [parse(choice) for part in searched.parts for choice in part.choices[1:]]
    job, task = plan.job, plan.specs[0].task
    return score_mode(job.score_mode, job.score_suffix, stacks, task)


def _check_numbers(own: dict[str, Any]) -> None:
    """Refuse values in a file that a flag would refuse."""
    for key in ("evals", "population", "workers"):
        if own[key] is not None and (type(own[key]) is not int or own[key] < 1):
            raise SpecError(f"{key}: expected a whole number from 1, got {own[key]!r}")
    if own["seed"] is not None and (type(own["seed"]) is not int or own["seed"] < 0):
        raise SpecError(f"seed: expected a whole number from 0, got {own['seed']!r}")
    for key in ("validation", "limit"):
        if own[key] is not None and not (isinstance(own[key], int | float) and 0 < own[key] < float("inf")):
            raise SpecError(f"{key}: expected a number of documents, or a share of them below 1, got {own[key]!r}")
    if not isinstance(own["controls"], bool | None):
        raise SpecError(f"controls: expected true or false, got {own['controls']!r}")


def _texts(given: Any) -> list[str]:
    """Texts of a flag, or of a file, where budgets may be a mapping."""
    if isinstance(given, dict):
        return [f"{key}={value}" for key, value in given.items()]
    return [str(each) for each in (given if isinstance(given, list) else [given]) if each is not None]


def _words(given: Any) -> tuple[str, ...]:
    return arguments.names(_texts(given))
