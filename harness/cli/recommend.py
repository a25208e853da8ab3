"""``harness recommend``: which methods to take under a budget, from the records that there are."""

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

from typer import Exit, Option

from harness.core.errors import SpecError

_Many = list[str] | None


def recommend(
    pretrained: Annotated[str, Option("--pretrained", help="The model, by any name that the runs have.")] = "pocket",
    task: Annotated[str | None, Option("--task", "--tasks", "-t", help="The task.")] = None,
    budget: Annotated[
        _Many,
        Option(
            "--budget",
            help="The most that a cost may be, times dense's: latency=0.75, flops, ttft, tpot, memory, bytes, energy. "
            "Repeatable.",
        ),
    ] = None,
    results: Annotated[Path, Option("--results", help="Folder of results.")] = Path("runs"),
    run: Annotated[bool, Option("--run", help="Measure what the runs lack, and make those of --method.")] = False,
    method: Annotated[_Many, Option("--method", "-m", help="With --run: methods, as for `sweep`. Repeatable.")] = None,
    include_path: Annotated[str | None, Option("--include_path", help="With --run: a folder of lm-eval tasks.")] = None,
    offline: Annotated[bool, Option("--offline", help="Never use the network.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Name the methods on the front within a budget, which of them cannot be told apart, and what is not known.

    Nothing is named whose saving is simulated, or whose interval leaves room for no saving.
    """
    from harness.cli import recommend_display
    from harness.cli.recommending import Asked, make
    from harness.results.budgets import budgets
    from harness.results.store import Store

    limits = budgets(budget or [])
    if not limits:
        raise SpecError("within what? Give --budget, such as latency=0.75 or flops=0.8")
    if task is None:
        raise SpecError("for which task? Give --task NAME: `harness ls runs` lists the runs")
    if (method or include_path) and not run:
        raise SpecError("--method and --include_path say what --run makes: give --run too")
    asked = Asked(Store(results), pretrained, task, limits)
    if run:
        from harness.evaluate import quiet

        quiet.silence(offline=offline)
        with redirect_stdout(sys.stderr):  # libraries and tasks print; standard output is for results
            make(asked, asked.advice(), method or [], include_path)
    advice = asked.advice()
    if not advice:
        raise asked.nothing()
    if as_json:
        recommend_display.print_json(asked, advice)
    else:
        recommend_display.show(asked, advice)
    if not any(each.named for each in advice):
        raise Exit(1)
