"""How a faulty method is declared."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.contract.method import Method

FAULTS: dict[type[Method], set[str]] = {}


def fault(*checks: str) -> Callable[[type[Method]], type[Method]]:
    """Declare a method faulty, and which checks catch it."""

    def declare(method: type[Method]) -> type[Method]:
        method = dataclass(frozen=True, kw_only=True)(method)
        FAULTS[method] = set(checks)
        return method

    return declare
