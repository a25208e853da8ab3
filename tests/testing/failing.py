"""What the checks say of a method."""

from collections.abc import Collection, Sequence

from harness.testing import Outcome, checks_for, run
from harness.testing.subject import FAMILIES, Checked


def failing(
    method: Checked, families: Sequence[str] = FAMILIES, names: Collection[str] = (), device: str = "cpu"
) -> dict[str, str]:
    """The checks that the method fails, with what they say; of all checks, or of these alone."""
    checks = [check for check in checks_for(method, families, device) if not names or check.name in names]
    return {result.name: result.message for result in run(checks) if result.outcome is Outcome.FAILED}
