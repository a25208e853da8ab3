"""``harness check METHOD``: try a method against the contract on small generated models."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from harness.core.errors import HarnessError, UnknownNameError

if TYPE_CHECKING:
    from harness.testing import Check, Result

_COLOURS = {"passed": "green", "failed": "red", "skipped": "dim", "expected failure": "yellow"}


def check(
    method: Annotated[str, Argument(help="name, name:key=value,..., ./file.py:Class, or a+b.")],
    expected_failed: Annotated[
        list[str] | None,
        Option("--expected_failed", help="CHECK=REASON: a check that it is known to fail. Repeatable."),
    ] = None,
    family: Annotated[
        list[str] | None,
        Option("--family", help="A family of decoders to try it on, such as llama, instead of five. Repeatable."),
    ] = None,
    device: Annotated[
        str, Option("--device", help="Where the tiny models are: cpu, cuda, cuda:0, ... or mps.")
    ] = "cpu",
    as_json: Annotated[bool, Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check a method on tiny models, offline, in seconds. Exit code 1 if a check fails.

    Without parameters, a method is checked at the strongest of its examples.
    """
    from harness.evaluate import quiet

    quiet.silence(offline=True)
    from harness.run.loading import require_device
    from harness.testing import checks_for
    from harness.testing.checks.isolation import load_early

    load_early()
    require_device(device)
    checks = list(checks_for(method, _families(family), device))
    label = checks[0].subject.stack.label
    results = _tried(checks, _reasons(expected_failed or []))
    if as_json:
        plain = {"method": label, "checks": [asdict(result) for result in results]}
        print(json.dumps(plain, indent=2))  # noqa: T201
    else:
        _print(label, results)
    if not all(result.ok for result in results):
        raise Exit(1)


def _tried(checks: "Sequence[Check]", expected: dict[str, str]) -> "list[Result]":
    """Run the checks under a progress bar on stderr that names the one that is running."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from harness.testing import run

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    results = []
    outcomes = run(checks, expected)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(checks))
        for running in checks:
            progress.update(task, description=f"{running.name:<28}")
            results.append(next(outcomes))
            progress.advance(task)
    return results


def _print(label: str, results: "Iterable[Result]") -> None:
    from harness.cli.columns import Column, left, show
    from harness.cli.display import say, stdout

    results = list(results)
    outcomes = [result.outcome.value for result in results]
    seconds = [f"{result.seconds:.1f}" for result in results]
    said = [result.message or result.description for result in results]
    console = stdout()
    say(console, label, style="bold")
    show(
        console,
        [
            left("check", [result.name for result in results], 20),
            left("outcome", outcomes, styles=[_COLOURS[outcome] for outcome in outcomes]),
            Column("s", seconds, styles=["dim"] * len(results)),
        ],
        [left("", said, 30, ["dim" if result.ok else "red" for result in results])],
    )
    console.print()
    counts = {outcome: outcomes.count(outcome) for outcome in _COLOURS}
    say(console, ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count), style="")


def _families(given: "list[str] | None") -> "Sequence[str]":
    from harness.testing.subject import FAMILIES
    from harness.testing.tiny import FAMILIES as KNOWN

    for name in given or ():
        if name not in KNOWN:
            raise UnknownNameError("family of decoders", name, KNOWN, see=f"There are: {', '.join(KNOWN)}.")
    return given or FAMILIES


def _reasons(given: Iterable[str]) -> dict[str, str]:
    reasons = {}
    for text in given:
        name, equals, reason = text.partition("=")
        if not equals or not reason.strip():
            raise HarnessError(f"--expected_failed {text}: expected CHECK=REASON; a failure needs a reason")
        reasons[name.strip()] = reason.strip()
    return reasons
