"""Timing ends when it is good enough or when its budget is spent, and says which, on a clock that tests turn."""

import pytest

from harness.measure.rounds import LEAST_ROUNDS, REPEATS, Cell, time_cells
from tests.silent import Silent


class Machine:
    """Cells that take as long as they are told, on a clock of their own."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, list[str]()

    def cell(self, name: str, seconds: float, size: float, *, required: bool = False) -> Cell:
        def run(times: int) -> list[float]:
            self.order.append(name)
            self.now += times * seconds
            return [seconds] * times

        return Cell(run, size, required)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def timed(machine: Machine, cells, budget_s, good=lambda: False, bar=None):
    return time_cells(cells, budget_s, good, bar or Silent(), now=lambda: machine.now)


def test_it_ends_as_soon_as_it_is_good(machine):
    cells = [machine.cell("a", 0.01, 1), machine.cell("b", 0.02, 2)]
    timing = timed(machine, cells, 100, good=lambda: True)
    assert (timing.rounds, timing.cut_short, timing.complete) == (LEAST_ROUNDS, False, True)
    assert timing.seconds < 1
    asked = []
    timing = timed(machine, cells, 100, good=lambda: len(asked) == 3 or asked.append(1))
    assert timing.rounds == LEAST_ROUNDS + 3


def test_it_ends_when_its_budget_is_spent(machine):
    bar = Silent()
    cells = [machine.cell("a", 0.05, 1), machine.cell("b", 0.04, 2)]
    timing = timed(machine, cells, 3, bar=bar)
    assert (timing.cut_short, timing.complete) == (True, True)
    assert 3 <= timing.seconds < 3 + 0.05 * (1 + REPEATS)  # one visit too much at the most
    assert timing.rounds > 2
    assert bar.expected == bar.advanced == 3


def test_the_smallest_cells_are_timed_first_and_the_required_ones_in_any_case(machine):
    cells = [
        machine.cell("long", 4, 30),
        machine.cell("required", 3, 20, required=True),
        machine.cell("short", 2, 10),
        machine.cell("tiny", 1, 1, required=True),
    ]
    bar = Silent()
    timing = timed(machine, cells, 5, bar=bar)
    assert list(dict.fromkeys(machine.order)) == ["tiny", "short", "required"]
    assert (timing.rounds, timing.cut_short, timing.complete) == (0, True, False)
    assert [bool(cell.samples) for cell in cells] == [False, True, True, True]
    assert bar.expected == bar.advanced == 5


def test_slow_cells_are_called_once_a_visit_and_fast_ones_are_warmed_up(machine):
    slow, fast = machine.cell("slow", 1.0, 1), machine.cell("fast", 0.001, 1)
    for _ in range(2):
        slow.visit()
        fast.visit()
    assert (len(slow.samples), len(fast.samples)) == (2, 1 + REPEATS)
    assert slow.best == 1.0
    assert machine.order == ["slow", "fast", "fast", "slow", "fast", "fast"]
