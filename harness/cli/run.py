"""``harness run``: evaluate methods against dense on tasks. Flags are lm-eval's where lm-eval has them."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, get_args

from typer import Exit, Option

from harness.cli import arguments
from harness.core.errors import HarnessError, SpecError, UnknownNameError

_Many = list[str] | None
_LONGEST_NAME = 100  # characters of a run's name


def run(
    method: Annotated[
        _Many,
        Option("--method", "-m", help="name, name:key=value,..., ./file.py:Class, or a+b to stack. Repeatable."),
    ] = None,
    tasks: Annotated[
        _Many,
        Option("--tasks", "--task", "-t", help="Task, group or tag names, globs, YAML files or folders."),
    ] = None,
    suite: Annotated[
        str | None,
        Option("--suite", help="Tasks with their flags: a name, or your own YAML file. Flags given here win over its."),
    ] = None,
    pretrained: Annotated[
        str | None,
        Option(
            "--pretrained",
            help="A model: a folder, a GGUF file, a name of the hub, or one of `harness ls models`; short for "
            "--model_args pretrained=...",
        ),
    ] = None,
    method_args: Annotated[_Many, Option("--method_args", help="key=value,... for the one method given.")] = None,
    model: Annotated[str, Option("--model", "-M", help="lm-eval's backend; only hf.")] = "hf",
    model_args: Annotated[_Many, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")] = None,
    num_fewshot: Annotated[int | None, Option("--num_fewshot", "-f", min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[str, Option("--batch_size", "-b", help="Rows per forward.")] = "1",
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    limit: Annotated[
        float | None, Option("--limit", "-L", help="First n documents of each task, or a share below 1.")
    ] = None,
    samples: Annotated[
        str | None, Option("--samples", "-E", help='JSON of document indices, such as {"arc_easy": [0, 7]}.')
    ] = None,
    gen_kwargs: Annotated[_Many, Option("--gen_kwargs", help="Generation arguments, key=value,...")] = None,
    apply_chat_template: Annotated[
        str | None, Option("--apply_chat_template", help="Use the model's chat template, or the one named.")
    ] = None,
    system_instruction: Annotated[str | None, Option("--system_instruction", help="System prompt.")] = None,
    fewshot_as_multiturn: Annotated[
        str | None, Option("--fewshot_as_multiturn", help="Few-shot examples as turns of a chat.")
    ] = None,
    seed: Annotated[
        str, Option("--seed", help="One seed, or four: Python, numpy, torch, few-shot.")
    ] = "0,1234,1234,1234",
    include_path: Annotated[str | None, Option("--include_path", help="A folder with your own lm-eval tasks.")] = None,
    metadata: Annotated[_Many, Option("--metadata", help="key=value,... for tasks that ask for it.")] = None,
    trust_remote_code: Annotated[bool, Option("--trust_remote_code", help="Run the model repository's code.")] = False,
    confirm_run_unsafe_code: Annotated[
        bool, Option("--confirm_run_unsafe_code", help="Allow tasks that execute generated code.")
    ] = False,
    calibration: Annotated[
        str,
        Option(
            "--calibration",
            help="Text to prepare on: task (its training split), bundled, dataset:NAME:SPLIT:COLUMN, a file.",
        ),
    ] = "task",
    score_mode: Annotated[
        str | None,
        Option(
            "--score_mode",
            help="lm-eval reads context and answer in one forward; context-first reads a context once into the cache, "
            "then each answer against it. lm-eval unless a method acts in decoding alone.",
        ),
    ] = None,
    score_suffix: Annotated[
        str | None,
        Option(
            "--score_suffix",
            help="Context-first: the end of the context that is read with the answer, so that no method compresses "
            "it: a number of tokens from 2, or the text from its last occurrence on.",
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        Option(
            "--kernel",
            help="What computes the linear layers of methods that have kernels: one by the record's name, or dense. "
            "Without it, a kernel only where it is faster than dense here.",
        ),
    ] = None,
    measure: Annotated[
        _Many,
        Option(
            "--measure",
            envvar="HARNESS_MEASURE",
            help="What is measured beside the scores: flops (always),ideal,latency,memory,energy,throughput,graph.",
        ),
    ] = ["flops,ideal,latency,memory"],  # noqa: B006 - typer reads it, nothing changes it
    throughput: Annotated[
        _Many,
        Option("--throughput", help="Measure tokens a second too, in batches of these sizes, such as 1,8,64."),
    ] = None,
    graph: Annotated[
        bool,
        Option("--graph", help="Measure latency without launch overhead too, by captured steps; needs CUDA."),
    ] = False,
    cost_samples: Annotated[
        int, Option("--cost_samples", min=2, help="Requests of the task that latency and memory are measured on.")
    ] = 12,
    repeats: Annotated[int, Option("--repeats", min=2, help="Rounds in which each of them is measured.")] = 5,
    warmup: Annotated[int, Option("--warmup", min=0, help="Unmeasured runs of each before the first.")] = 3,
    cost_tokens: Annotated[
        int, Option("--cost_tokens", min=2, help="Tokens generated for a measured request, at most.")
    ] = 32,
    cost_budget: Annotated[
        float | None,
        Option("--cost_budget", help="Seconds for a cost profile; else a fifth of the evaluation, from 10 to 60."),
    ] = None,
    isolate: Annotated[bool, Option("--isolate", help="Measure in a process of its own.")] = False,
    accelerator: Annotated[
        _Many, Option("--accelerator", help="Machines to work out a roofline for; this-host is measured. Repeatable.")
    ] = None,
    price: Annotated[
        float | None, Option("--price", min=0, help="US dollars for an accelerator and hour, over the price table's.")
    ] = None,
    carbon_intensity: Annotated[
        float | None, Option("--carbon_intensity", min=0, help="Grams of CO2 for a kilowatt-hour.")
    ] = None,
    baseline: Annotated[bool, Option("--baseline/--no_baseline", help="Run dense too, to compare with.")] = True,
    controls: Annotated[
        bool,
        Option(
            "--controls",
            help="Run beside routing methods what they must beat at the share of the layers that each was seen to run: "
            "one fixed path, and layers drawn at random.",
        ),
    ] = False,
    output_path: Annotated[Path, Option("--output_path", "-o", help="Folder of results.")] = Path("runs"),
    name: Annotated[
        str | None, Option("--name", help="What you call these runs: `harness ls runs --name NAME` lists them.")
    ] = None,
    resume: Annotated[
        bool, Option("--resume/--no_resume", help="Keep finished runs and documents, or compute them again.")
    ] = True,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    dry_run: Annotated[
        bool, Option("--dry_run", help="Print the plan, the run ids and how long it will take, and stop.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print records as JSON.")] = False,
    predict_only: Annotated[
        bool, Option("--predict_only", "-x", help="Keep answers and costs; compute no metrics.")
    ] = False,
    write_out: Annotated[bool, Option("--write_out", "-w", help="Log the prompts of the first documents.")] = False,
    show_config: Annotated[bool, Option("--show_config", help="Print the tasks' configurations too.")] = False,
    log_samples: Annotated[bool, Option("--log_samples", "-s", help="Always on: every run keeps its samples.")] = True,
    verbosity: Annotated[
        str | None, Option("--verbosity", "-v", help="Show the libraries' log from this level.")
    ] = None,
    config: Annotated[
        Path | None,
        Option(
            "--config",
            "-C",
            is_eager=True,
            callback=arguments.from_yaml,
            help="YAML with any of these flags.",
        ),
    ] = None,
) -> None:
    """Evaluate methods on tasks, each against the dense model on the same documents."""
    from harness.cli import display, summary
    from harness.evaluate import quiet

    quiet.silence(verbosity or ("INFO" if write_out else None), offline=offline)
    args = arguments.key_values("--model_args", model_args or [])
    job = build_job(
        name=checked_name(name),
        methods=tuple(method or ["dense"]),
        method_args=arguments.key_values("--method_args", method_args or [], read=False),
        baseline=baseline,
        tasks=_tasks(arguments.names(tasks or []), suite),
        pretrained=_pretrained(model, pretrained, args),
        model_args=args,
        device=device,
        batch_size=_batch_size(batch_size),
        num_fewshot=num_fewshot,
        limit=limit,
        samples=arguments.samples(samples),
        gen_kwargs=arguments.key_values("--gen_kwargs", gen_kwargs or []) or None,
        apply_chat_template=_flag_or_name(apply_chat_template),
        system_instruction=system_instruction,
        fewshot_as_multiturn=_flag("--fewshot_as_multiturn", fewshot_as_multiturn or "true"),
        seeds=arguments.seeds(seed),
        include_path=include_path,
        metadata=arguments.key_values("--metadata", metadata or []),
        trust_remote_code=trust_remote_code,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
        calibration=calibration,
        score_mode=_score_mode(score_mode),
        score_suffix=score_suffix,
        kernel=kernel,
        predict_only=predict_only,
        write_out=write_out,
        resume=resume,
        costs=_costs(
            measure,
            accelerator,
            throughput,
            graph=graph,
            prompts=cost_samples,
            rounds=repeats,
            warmup=warmup,
            new_tokens=cost_tokens,
            isolate=isolate,
            budget_s=arguments.above_zero("--cost_budget", cost_budget, "a number of seconds"),
            usd_per_hour=arguments.above_zero("--price", price, "US dollars for an hour,"),
            carbon_intensity=arguments.finite("--carbon_intensity", carbon_intensity),
        ),
    )
    from harness.results.store import Store
    from harness.run.controls import with_controls
    from harness.run.session import Session

    session = Session(job, Store(output_path), display.Reporter())
    if dry_run:
        display.plan(session, as_json=as_json)
        return
    try:
        with redirect_stdout(sys.stderr):  # libraries and tasks print; standard output is for results
            sessions = with_controls(session) if controls else [session]
            records = [record for each in sessions for record in each.evaluate()]
        is_first = not as_json and bool(records) and any(each.lacks_costs for each in sessions)
        if is_first:
            summary.scores(records)
        with redirect_stdout(sys.stderr):
            records = [record for each in sessions for record in each.measure()]
    except KeyboardInterrupt:
        display.Reporter().say("stopped. Finished documents are kept: give the same command again to go on.")
        raise Exit(130) from None
    summary.results(records, output_path, as_json=as_json, after_scores=is_first)
    if show_config:
        display.configurations(session, on_stderr=as_json)


def build_job(**settings: Any) -> Any:
    """The job, with pydantic's complaints as a sentence."""
    from pydantic import ValidationError

    from harness.run.spec import Job

    try:
        return Job(**settings)
    except ValidationError as error:
        problem = error.errors()[0]
        where = "".join(f"--{part}: " for part in problem["loc"][:1])
        if problem["loc"] == ("tasks",):
            raise SpecError(
                "which task? Give --task NAME or --suite NAME: `harness ls tasks`, `harness ls suites`."
            ) from error
        raise SpecError(f"{where}{problem['msg'].removeprefix('Value error, ')}") from error


def _costs(measure: _Many, accelerators: _Many, batch_sizes: _Many, *, graph: bool, **settings: Any) -> Any:
    """What is measured, with names checked."""
    from harness.measure.accelerators import HOST, names
    from harness.run.spec import CostPlan, Measure

    known, machines = get_args(Measure), [*names(), HOST]
    wanted = arguments.names(measure or [])
    chosen = arguments.names(accelerators or []) or CostPlan().accelerators
    for name in wanted:
        if name not in known:
            raise UnknownNameError("measurement", name, known, see=f"--measure takes: {', '.join(known)}.")
    for name in chosen:
        if name not in machines:
            raise UnknownNameError("accelerator", name, machines, see=f"Known: {', '.join(machines)}.")
    if batch_sizes is not None:
        wanted = (*wanted, "throughput")
        settings["batch_sizes"] = arguments.batch_sizes(batch_sizes)
    if graph:
        wanted = (*wanted, "graph")
    return CostPlan.model_validate({"measure": wanted, "accelerators": chosen, **settings})


def _tasks(given: tuple[str, ...], name: str | None) -> tuple[Any, ...]:
    """The tasks named, or those of a suite."""
    if name is None:
        return given
    if given:
        raise HarnessError("--suite and --task exclude each other: give one, or write a suite of your own as YAML")
    from harness.cli.display import Reporter
    from harness.evaluate import suites

    suite = suites.load(name)
    for what, why in suite.left_out.items():
        Reporter().say(f"suite {name} leaves out {what}: {why}")
    return suite.tasks


def _pretrained(backend: str, pretrained: str | None, model_args: dict[str, Any]) -> str:
    """The model: --pretrained, model_args' pretrained (taken out), or the bundled one."""
    if backend not in ("hf", "hf-auto", "huggingface"):
        raise HarnessError(f"--model {backend}: only hf (transformers) models can be taken apart; give --model hf")
    within = model_args.pop("pretrained", None)
    given = [each for each in (pretrained, within) if each is not None]
    if len(given) > 1 and pretrained != within:
        raise HarnessError(f"--pretrained {pretrained} and --model_args pretrained={within} differ: give one")
    return str(given[0]) if given else "pocket"


def checked_name(name: str | None) -> str | None:
    """What the user calls the runs, by the rule for texts that are published."""
    from harness.leaderboard.texts import problems

    if name is None:
        return None
    if not name.strip() or name != name.strip() or len(name) > _LONGEST_NAME:
        raise HarnessError(f"--name {name!r}: expected 1 to {_LONGEST_NAME} characters, none of them a space at an end")
    for problem in problems({"name": name}):
        raise HarnessError(f"--name {name!r}: {problem.partition(': ')[2]}")
    return name


def _batch_size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        automatic = " ('auto' would make costs and rounding depend on the memory of the day)" if "auto" in text else ""
        raise HarnessError(f"--batch_size {text}: expected a whole number from 1{automatic}")
    return int(text)


def _score_mode(name: str | None) -> str | None:
    from harness.evaluate.score_mode import ScoreMode

    known = get_args(ScoreMode)
    if name is not None and name not in known:
        raise UnknownNameError("score mode", name, known, see=f"--score_mode takes: {', '.join(known)}.")
    return name


def _flag(option: str, text: str) -> bool:
    value = _flag_or_name(text)
    if isinstance(value, str):
        raise HarnessError(f"{option} {text}: expected true or false")
    return value


def _flag_or_name(text: str | None) -> bool | str:
    if text is None or text.lower() in ("false", "0", "no"):
        return False
    return True if text.lower() in ("true", "1", "yes") else text
