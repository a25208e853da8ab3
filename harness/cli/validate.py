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
    as_json: Annotated[bool, Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check results: schema, digests, scores computed again from the documents, plausible work; nothing is executed.

    Exit code 1 if anything would be refused. Warnings are for the reviewer.
    """
    from harness.core.files import write_atomic
    from harness.core.text import printable
    from harness.leaderboard.validate import validate as check

    verdict = check(path, against)
    if not verdict.runs and not verdict.findings:
        raise HarnessError(f"{path} has no runs to validate: give a run's folder, or a folder with many")
    if report is not None:
        write_atomic(report, verdict.table)
    if as_json:
        findings = [{**vars(finding), "folder": str(finding.folder)} for finding in verdict.findings]
        typer.echo(json.dumps({"runs": verdict.runs, "passed": verdict.passed, "findings": findings}, indent=2))
    else:
        for finding in verdict.findings:
            line = f"{finding.severity}: {finding.folder.name}: {finding.text} ({finding.rule})"
            typer.echo(printable(line))
        errors = sum(finding.severity == "error" for finding in verdict.findings)
        typer.echo(f"{verdict.runs} runs, {errors} errors, {len(verdict.findings) - errors} warnings")
    if not verdict.passed:
        raise typer.Exit(1)
