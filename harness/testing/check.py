"""A check: one sentence that must be true of a method, and its outcome."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import UnknownNameError
from harness.core.strangers import is_interrupt
from harness.testing.network import no_network
from harness.testing.outcome import Failed, Outcome, Result, Skipped

if TYPE_CHECKING:
    from harness.testing.subject import Subject


@dataclass(frozen=True)
class Check:
    """One check of one method.

    Attributes:
        name: what it is called in ``expected_failed_checks``.
        description: the sentence that must be true.
        subject: the method, with the models that it is tried on.
        body: tries it.
    """

    name: str
    description: str
    subject: "Subject"
    body: Callable[["Subject"], None]

    def __call__(self) -> None:
        """Try it, without a network.

        Raises:
            Failed: the sentence is not true; any other exception is as bad.
            Skipped: the check does not apply.
        """
        with no_network():
            self.body(self.subject)


def run(checks: Iterable[Check], expected_failed_checks: Mapping[str, str] | None = None) -> Iterator[Result]:
    """Try the checks one after the other.

    Args:
        checks: those of one method, from ``checks_for``.
        expected_failed_checks: names of checks that the method is known to fail, with the reason. One that
            passes nevertheless is a failure, so that a reason does not outlive its cause.

    Raises:
        UnknownNameError: an expected failure of a check that does not exist.
    """
    checks, expected = list(checks), dict(expected_failed_checks or {})
    refuse_unknown(expected, checks)
    return (_result(check, expected.get(check.name)) for check in checks)


def refuse_unknown(expected: Iterable[str], checks: Iterable[Check]) -> None:
    """Refuse the name of a check that does not exist.

    Raises:
        UnknownNameError: with the nearest existing names.
    """
    known = [check.name for check in checks]
    for name in expected:
        if name not in known:
            raise UnknownNameError("check", name, known, see=f"There are: {', '.join(known)}.")


def _result(check: Check, reason: str | None) -> Result:
    start = time.perf_counter()
    outcome, message = _outcome(check)
    if reason is not None and outcome is Outcome.FAILED:
        outcome, message = Outcome.EXPECTED, reason
    elif reason is not None:
        message = f"it was expected to fail ({reason}) but {outcome}: take it off the list"
        outcome = Outcome.FAILED
    return Result(check.name, check.description, outcome, message, time.perf_counter() - start)


def _outcome(check: Check) -> tuple[Outcome, str]:
    try:
        check()
    except Skipped as skipped:
        return Outcome.SKIPPED, str(skipped)
    except Failed as failed:
        return Outcome.FAILED, str(failed)
    except BaseException as error:  # a method under development may fail in any way
        if is_interrupt(error):
            raise
        return Outcome.FAILED, raised(error)
    return Outcome.PASSED, ""


def raised(error: BaseException) -> str:
    """An unforeseen exception in one line, with the place that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({Path(place.filename).name}:{place.lineno})" for place in frame)
    message = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {message}{where}"
