"""``harness profile``: what a layer costs on this host, fitted, with how far to trust it; or HELM's published table."""

import json
from typing import TYPE_CHECKING, Annotated

from typer import Option

if TYPE_CHECKING:
    from rich.table import Table

    from harness.measure.profile import CostProfile, Costs


def profile(
    pretrained: Annotated[str, Option("--pretrained", help="Hugging Face model name or folder.")] = "pocket",
    model_args: Annotated[
        list[str] | None, Option("--model_args", "-a", help="key=value,... as lm-eval takes them.")
    ] = None,
    device: Annotated[str | None, Option("--device", help="cpu, cuda, cuda:0, ...; a GPU where there is one.")] = None,
    again: Annotated[bool, Option("--again", help="Measure again, also if a profile is kept.")] = False,
    helm: Annotated[
        str | None, Option("--helm", help="Instead: a model of HELM's table, such as j1-large, by HELM's own rule.")
    ] = None,
    prompt: Annotated[int, Option("--prompt", min=1, help="Tokens of the prompt whose time is predicted.")] = 1024,
    output: Annotated[int, Option("--output", min=0, help="Tokens written after it.")] = 11,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure the cost profile behind idealized runtimes, or show the one that is kept."""
    from harness.cli.display import plain, stdout

    if helm is not None:
        from harness.measure.helm import published

        seconds = published(helm).seconds(prompt, output)
        stdout().print(plain(f"{helm}: {seconds:.3f} s for {prompt} tokens read and {output} written (A100, HELM)"))
        return
    found = _profile(pretrained, model_args or [], device, again=again, offline=offline)
    if as_json:
        print(json.dumps(found.model_dump(mode="json") | {"label": found.label}, indent=2))  # noqa: T201
        return
    _show(found, pretrained, prompt, output)


def _profile(
    pretrained: str, model_args: list[str], device: str | None, *, again: bool, offline: bool
) -> "CostProfile":
    from harness.cli import arguments
    from harness.cli.display import Reporter
    from harness.evaluate import quiet

    quiet.silence(offline=offline)
    from harness.measure.profiling import measure_profile, stored_profile
    from harness.run import loading
    from harness.run.spec import ModelSettings

    args = arguments.key_values("--model_args", model_args)
    settings = ModelSettings(pretrained=pretrained, model_args=args, device=device)
    progress = Reporter()
    decoder = loading.load(settings, loading.source_of(settings), loading.device_of(settings), progress).decoder
    kept = None if again else stored_profile(decoder)
    if kept is not None:
        return kept
    with progress.bar(f"cost profile of {pretrained}") as bar:
        return measure_profile(decoder, bar)


def _show(found: "CostProfile", pretrained: str, prompt: int, output: int) -> None:
    from harness.cli.display import plain, stdout

    console = stdout()
    console.print(plain(f"cost profile of {pretrained}: {found.label}"), style="bold")
    console.print(plain(", ".join(f"{name} {value}" for name, value in found.host.items())), style="dim")
    console.print()
    console.print(_costs(found))
    console.print()
    held = found.held_out
    for line in (
        f"reading: R² {found.prefill_fit.r2:.4f}, off by {found.prefill_fit.mape:.1%} on average",
        f"decoding: R² {found.decode_fit.r2:.4f}, off by {found.decode_fit.mape:.1%} on average",
        f"{held.schedules} generations held out, of changing depth: off by {held.mape:.1%}, bias {held.bias:+.1%}",
        f"their speed-up over full depth: off by {held.speedup_error:.1%}, at most {held.speedup_worst:.1%}",
        f"raw timings spread by {found.relative_iqr:.0%}; {found.seconds:.0f} s by {found.clock}",
        f"other processes used {found.others_share:.0%} of the machine meanwhile",
        "good: within 5 % fitted and 8 % held out; fair: 10 % and 15 %; poor is never ranked by",
        _prediction(found, prompt, output),
    ):
        console.print(plain(f"· {line}"), style="dim")


def _costs(found: "CostProfile") -> "Table":
    """Microseconds of the parts at some lengths."""
    from rich.table import Table

    from harness.cli.display import plain
    from harness.measure.profile import Work, forward_seconds

    table = Table(box=None, pad_edge=False)
    table.add_column("µs of")
    works: list[tuple[str, Costs, int, int]] = [(f"write 1 at {c}", found.decode, 1, c) for c in (64, 512)]
    works += [(f"read {n}", found.prefill, n, n) for n in (16, 64, 256)]
    for heading, *_ in works:
        table.add_column(heading, justify="right")
    for name, attention, mlp in (("around the layers", 0, 0), ("an attention", 1, 0), ("an MLP", 0, 1)):
        cells = []
        for _, costs, n, c in works:
            fixed = forward_seconds(costs, Work(n, c, 0, 0))
            seconds = forward_seconds(costs, Work(n, c, attention, mlp))
            cells.append(seconds if not attention + mlp else seconds - fixed)
        table.add_row(name, *(plain(f"{seconds * 1e6:.1f}") for seconds in cells))
    for name, line in (("the head, one row", found.head), ("a key-value fill", found.fill)):
        table.add_row(name, plain(f"{line.seconds(1) * 1e6:.1f}"))
    return table


def _prediction(found: "CostProfile", prompt: int, output: int) -> str:
    from harness.measure.profile import Work, forward_seconds

    layers = found.layers
    read = forward_seconds(found.prefill, Work(prompt, prompt, layers, layers))
    steps = (forward_seconds(found.decode, Work(1, prompt + step, layers, layers)) for step in range(1, output))
    total = read + sum(steps)
    return f"{prompt} tokens read and {output} written: {total:.3f} s idealized ({read:.3f} s to the first token)"
