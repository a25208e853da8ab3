"""Budgets as people give them: ``latency=0.75`` allows three quarters of dense's latency."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Final

from harness.core.errors import SpecError, UnknownNameError
from harness.results.baseline import COSTS, Cost

SPOKEN: Final = {"bytes": "weights", "memory": "peak_memory", "time": "latency"}
"""Words for a cost that are not its name in a record."""

_MEASURED: Final = {
    **dict.fromkeys(("latency", "ttft", "tpot"), "latency"),
    **dict.fromkeys(("ideal_ref", "ideal_own", "ideal_requests"), "ideal"),
    **dict.fromkeys(("energy", "energy_estimated"), "energy"),
    "peak_memory": "memory",
}


def measures(costs: Iterable[Cost]) -> list[str]:
    """What ``--measure`` is given so that a record has these costs."""
    return sorted({"flops", *(_MEASURED[cost.name] for cost in costs if cost.name in _MEASURED)})


@dataclass(frozen=True)
class Budget:
    """The most that a cost may be, times dense's.

    Attributes:
        name: the cost as it was named.
    """

    name: str
    cost: Cost
    most: float

    def __str__(self) -> str:
        return f"{self.name}={self.most:g}"


def cost_named(name: str, kind: str, costs: Iterable[Cost] = COSTS) -> Cost:
    """The cost of a name, of a record's or a spoken one.

    Args:
        kind: what is named, for the error.

    Raises:
        UnknownNameError: there is none.
    """
    known = {cost.name: cost for cost in costs}
    if name not in SPOKEN and name not in known:
        names = [*SPOKEN, *known]
        raise UnknownNameError(kind, name, names, see=f"There are: {', '.join(names)}.")
    return known[SPOKEN.get(name, name)]


def budgets(texts: Iterable[str], costs: Iterable[Cost] = COSTS) -> tuple[Budget, ...]:
    """Budgets from ``name=value`` texts, several of them separated by commas.

    Raises:
        UnknownNameError: a cost that there is not.
        SpecError: not a number above 0 and at most 1, or a cost that is given twice.
    """
    given: dict[str, Budget] = {}
    for item in (item for text in texts for item in text.split(",") if item.strip()):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise SpecError(f"--budget {item.strip()}: expected a cost and its share of dense's, such as latency=0.75")
        cost = cost_named(name, "budget", costs)
        if cost.name in given:
            raise SpecError(f"--budget {given[cost.name].name} and {name} are one cost: give one of them")
        given[cost.name] = Budget(name, cost, _share(name, value))
    return tuple(given.values())


def _share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = float("nan")
    if not (isfinite(share) and 0 < share <= 1):
        raise SpecError(f"--budget {name}={text}: expected a share of dense's, above 0 and at most 1, such as 0.75")
    return share
