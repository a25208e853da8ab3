"""The command line: one module per sub-command, and nothing heavy imported until a command runs."""

import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from harness.cli import (
    analyze,
    check,
    compare,
    doctor,
    export,
    fetch,
    ls,
    new,
    prepare,
    profile,
    recommend,
    report,
    rm,
    run,
    show,
    site,
    spellings,
    submit,
    sweep,
    tune,
    validate,
)
from harness.core.errors import HarnessError
from harness.core.strangers import explained
from harness.core.text import printable, write_what_can_be


class _Sentences(TyperGroup):
    """Commands in which whatever a stranger's file raises is an error that a user can act on."""

    def invoke(self, ctx: Any) -> Any:
        with explained():
            return super().invoke(ctx)


app = typer.Typer(
    name="harness",
    cls=_Sentences,
    help="What does an efficiency method cost in quality, and what does it really save?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        # flags are spelled as lm-eval spells them, with underscores; hyphens are as good
        "token_normalize_func": lambda name: name.replace("-", "_"),
        "help_option_names": ["-h", "--help"],
    },
)
app.command("run")(run.run)
app.command("sweep")(sweep.sweep)
app.command("tune")(tune.tune)
app.command("prepare")(prepare.prepare)
app.command("export")(export.export)
app.add_typer(ls.app, name="ls")
app.command("show")(show.show)
app.command("rm")(rm.rm)
app.command("compare")(compare.compare)
app.command("recommend")(recommend.recommend)
app.command("profile")(profile.profile)
app.add_typer(analyze.app, name="analyze")
app.command("new")(new.new)
app.command("check")(check.check)
app.command("fetch")(fetch.fetch)
app.command("doctor")(doctor.doctor)
app.command("report")(report.report)
app.add_typer(site.app, name="site")
app.command("validate")(validate.validate)
app.command("submit")(submit.submit)


def main() -> None:
    """Run the command line. Errors that a user can act on are printed without a traceback, with exit code 2."""
    write_what_can_be()
    try:
        sys.exit(app(args=spellings.spread(sys.argv[1:]), prog_name="harness", standalone_mode=False) or 0)
    except HarnessError as error:
        _refuse(str(error))
    except TyperException as error:  # a flag or command that there is not, or a value of the wrong kind
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message.startswith("Usage:"):  # a command that is none without another
            print(message, file=sys.stderr)  # noqa: T201
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", "harness")
        end = "" if message.endswith(("?", ".")) else "."
        _refuse(f"{message[:1].lower()}{message[1:]}{end} See `{command} --help`.")
    except Abort:
        print("stopped", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _refuse(message: str) -> NoReturn:
    # a message may quote a stranger's file: nothing in it may steer the terminal
    text = printable(message, keep="\n")
    print(f"harness: {text}", file=sys.stderr)  # noqa: T201
    sys.exit(2)
