"""Help for the authors of methods: small models to try one on, and the checks that every method must pass.

``harness check METHOD`` runs the checks; so does a test that takes them from ``parametrize_methods``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.testing.check import Check, run
    from harness.testing.checks import checks_for
    from harness.testing.outcome import Outcome, Result
    from harness.testing.parametrize import parametrize_methods
    from harness.testing.tiny import tiny_decoder

_HOMES = {
    "Check": "harness.testing.check",
    "Outcome": "harness.testing.outcome",
    "Result": "harness.testing.outcome",
    "checks_for": "harness.testing.checks",
    "parametrize_methods": "harness.testing.parametrize",
    "run": "harness.testing.check",
    "tiny_decoder": "harness.testing.tiny",
}

__all__ = ["Check", "Outcome", "Result", "checks_for", "parametrize_methods", "run", "tiny_decoder"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
