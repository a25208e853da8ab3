"""``harness validate PATH``: the check that published results must pass, here and in the results folder's CI."""

import json
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from harness.core.errors import HarnessError


def validate(
    path: Annotated[Path, Argument(help="A run's folder, or a folder with many.")],
    against: Annotated[
        Path | None, Option("--against", help="The results as published: none may be gone or changed.")
    ] = None,
    report: Annotated[
        Path | None, Option("--report", help="Write a comparison of the new runs, as Markdown for a reviewer.")
    ] = None,
    rerun: Annotated[
        int,
        Option(min=0, help="Run so many random documents of each run again, of new runs beside --against; 0: none."),
    ] = 0,
    as_json: Annotated[bool, Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check results: schema, digests, all that can be computed again from the files, and what machines can do.

    Nothing of a submission is executed; with --rerun, this harness runs documents of it again, offline, with what is
    at hand. Exit code 1 if anything would be refused. Warnings are for the reviewer.
    """
    from harness.cli.display import say, stdout
    from harness.core.files import write_atomic
    from harness.leaderboard.validate import validate as check

    verdict = check(path, against, rerun)
    if not verdict.runs and not verdict.findings:
        raise HarnessError(f"{path} has no runs to validate: give a run's folder, or a folder with many")
    if report is not None:
        write_atomic(report, verdict.table)
    if as_json:
        findings = [{**vars(finding), "folder": str(finding.folder)} for finding in verdict.findings]
        reruns = [{"folder": str(each.folder), "outcome": str(each)} for each in verdict.reruns]
        content = {"runs": verdict.runs, "passed": verdict.passed, "findings": findings, "reruns": reruns}
        typer.echo(json.dumps(content, indent=2))
    else:
        console = stdout()
        for finding in verdict.findings:
            text = f"{finding.folder.name}: {finding.text} ({finding.rule})"
            say(console, text, f"{finding.severity}: ", style="")
        for each in verdict.reruns:
            say(console, str(each), f"{each.folder.name}: ", style="")
        errors = sum(finding.severity == "error" for finding in verdict.findings)
        typer.echo(f"{verdict.runs} runs, {errors} errors, {len(verdict.findings) - errors} warnings")
    if not verdict.passed:
        raise typer.Exit(1)
