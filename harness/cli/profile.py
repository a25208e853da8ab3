"""``harness profile``: what a layer costs on this host, fitted, with how far to trust it."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from typer import Option

if TYPE_CHECKING:
    from harness.cli.columns import Column
    from harness.measure.profile import CostProfile, Costs


def profile(
    pretrained: Annotated[
        str, Option("--pretrained", help="A folder, a GGUF file, a name of the hub, or one of `harness ls models`.")
    ] = "pocket",
    model_args: Annotated[
        list[str] | None, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")
    ] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    again: Annotated[bool, Option("--again", help="Measure again, also if a profile is kept.")] = False,
    cost_budget: Annotated[
        float | None, Option("--cost_budget", help="Seconds after which measuring ends; 60 if not given.")
    ] = None,
    prompt: Annotated[int, Option("--prompt", min=1, help="Tokens of the prompt whose time is predicted.")] = 1024,
    output: Annotated[int, Option("--output", min=0, help="Tokens written after it.")] = 11,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure the cost profile behind idealized runtimes, or show the one that is kept."""
    from harness.cli import arguments

    budget_s = arguments.above_zero("--cost_budget", cost_budget, "a number of seconds")
    result = _profile(pretrained, model_args or [], device, budget_s, again=again, offline=offline)
    if as_json:
        print(json.dumps(result.model_dump(mode="json") | {"label": result.label}, indent=2))  # noqa: T201
        return
    _show(result, pretrained, prompt, output)


def _profile(
    pretrained: str, model_args: list[str], device: str | None, budget_s: float | None, *, again: bool, offline: bool
) -> "CostProfile":
    from harness.cli import arguments
    from harness.cli.display import Reporter
    from harness.evaluate import quiet

    quiet.silence(offline=offline)
    from harness.measure.modules import profile_key
    from harness.measure.profiles import kept_profile
    from harness.measure.profiling import MOST_BUDGET_S, measure_profile
    from harness.run import loading
    from harness.run.spec import ModelSettings

    args = arguments.key_values("--model_args", model_args)
    settings = ModelSettings(pretrained=pretrained, model_args=args, device=device)
    progress = Reporter()
    source = loading.source_of(settings, progress.say)
    decoder = loading.load(settings, source, loading.device_of(settings), progress).decoder
    kept = None if again else kept_profile(profile_key(decoder))
    if kept is not None and not kept.improvable(budget_s):
        return kept
    with progress.bar(f"cost profile of {pretrained}") as bar:
        return measure_profile(decoder, bar, budget_s or MOST_BUDGET_S)


def _show(profile: "CostProfile", pretrained: str, prompt: int, output: int) -> None:
    from harness.cli.columns import left, show
    from harness.cli.display import note, say, stdout
    from harness.measure.profiles import described

    console = stdout()
    say(console, f"cost profile of {pretrained}: {profile.label}", style="bold")
    say(console, ", ".join(f"{name} {value}" for name, value in profile.host.items()))
    console.print()
    names = ("around the layers", "an attention", "an MLP", "the head, one row", "a key-value fill")
    show(console, [left("µs of", names)], _costs(profile))
    console.print()
    held = profile.held_out
    for line in (
        f"reading: R² {profile.prefill_fit.r2:.4f}, off by {profile.prefill_fit.mape:.1%} on average",
        f"decoding: R² {profile.decode_fit.r2:.4f}, off by {profile.decode_fit.mape:.1%} on average",
        f"{held.schedules} generations held out, of changing depth: off by {held.mape:.1%}, bias {held.bias:+.1%}",
        f"their speed-up over full depth: off by {held.speedup_error:.1%}, at most {held.speedup_worst:.1%}",
        f"raw timings spread by {profile.relative_iqr:.0%}; {profile.rounds} rounds by {profile.clock}",
        described(profile),
        f"other processes used {profile.others_share:.0%} of the machine meanwhile",
        f"{_limits()}; poor is never ranked by",
        _prediction(profile, prompt, output),
    ):
        note(console, line)


def _limits() -> str:
    """What makes a profile good, and fair."""
    from harness.measure.profile import FAIR, GOOD

    words = "{:.0%} fitted, {:.0%} held out, speed-ups {:.0%} on average and {:.0%} at most"
    return f"good: off by {words.format(*GOOD)}, every length timed; fair: {words.format(*FAIR)}"


def _costs(profile: "CostProfile") -> "list[Column]":
    """Microseconds of the parts at some lengths."""
    from harness.cli.columns import Column
    from harness.measure.profile import Work, forward_seconds

    # an attention is one of those that see everything, where the model has any
    windows = profile.windows if len(profile.windows) == profile.layers else ()
    works: list[tuple[str, Costs, int, int]] = [(f"write 1 at {c}", profile.decode, 1, c) for c in (64, 512)]
    works += [(f"read {n}", profile.prefill, n, n) for n in (16, 64, 256)]
    always = [line.seconds(1) for line in (profile.head, profile.fill)]
    columns = list[Column]()
    for heading, costs, n, c in works:
        fixed = forward_seconds(costs, Work(n, c, 0, 0))
        parts = [
            forward_seconds(costs, Work(n, c, attention, mlp, windows=windows[:attention])) - fixed
            for attention, mlp in ((1, 0), (0, 1))
        ]
        seconds = [fixed, *parts, *(always if not columns else [])]
        cells = [f"{each * 1e6:.1f}" for each in seconds]
        columns.append(Column(heading, [*cells, *[""] * (5 - len(cells))]))
    return columns


def _prediction(profile: "CostProfile", prompt: int, output: int) -> str:
    from harness.measure.profile import Work, forward_seconds

    whole = Work(prompt, prompt, profile.layers, profile.layers, windows=profile.windows)
    read = forward_seconds(profile.prefill, whole)
    steps = (forward_seconds(profile.decode, replace(whole, n=1, c=prompt + step)) for step in range(1, output))
    total = read + sum(steps)
    return f"{prompt} tokens read and {output} written: {total:.3f} s idealized ({read:.3f} s to the first token)"
