"""Do the intervals hold? Draws from known truths: how often an interval contains the truth, and how often p < .05.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.coverage

Prints a table for each kind of statistic, of 4,000 draws a cell (a standard error of .0034 at .95), and what lies below
93.5 % or raises more false alarms than 5 % and three standard errors. Draws for which the statistics give no interval
are counted apart. Takes two minutes of one core.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from harness.results.documents import weighted_perplexity
from harness.results.stats.conventions import Floats
from harness.results.stats.mcnemar import detectable, interval
from harness.results.stats.paired import Difference, difference, statistic_difference
from harness.results.stats.ratio import Ratio, paired_ratio, total_ratio

DRAWS = 4000
LEAST_COVERAGE = 0.935
MOST_ALARMS = 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5
_TINY = 1e-12

rng = np.random.default_rng(20240611)


@dataclass
class Cell:
    """What came of the draws of one truth."""

    truth: float
    null: float | None
    """The truth under which p < .05 is a false alarm."""
    kept: int = 0
    covered: int = 0
    alarms: int = 0
    widths: list[float] = field(default_factory=list)

    def add(self, found: Difference | Ratio) -> None:
        """Count one draw."""
        if found.low is None or found.high is None:
            return
        self.kept += 1
        self.covered += found.low - _TINY <= self.truth <= found.high + _TINY
        self.widths.append(found.high - found.low)
        self.alarms += found.decided if isinstance(found, Ratio) else found.p < 0.05

    @property
    def verdict(self) -> str:
        """What is wrong with it, if anything."""
        faults = []
        if self.kept >= DRAWS / 100 and self.covered / self.kept < LEAST_COVERAGE:
            faults.append("coverage")
        if self.truth == self.null and self.alarms / DRAWS > MOST_ALARMS:
            faults.append("false alarms")
        return ", ".join(faults)

    def __str__(self) -> str:
        if self.kept < DRAWS / 100:
            return f"none (but {self.kept} of {DRAWS})" if self.kept else "none"
        share = "" if self.kept == DRAWS else f" (of {self.kept / DRAWS:.0%})"
        return f"{self.covered / self.kept:.3f}{share} / {self.alarms / DRAWS:.3f}"


Draw = Callable[[], Difference | Ratio]
Rows = Iterator[tuple[str, list[Cell]]]


def cell(truth: float, null: float | None, draw: Draw) -> Cell:
    """So many draws of one truth."""
    result = Cell(truth, null)
    for _ in range(DRAWS):
        result.add(draw())
    return result


def table(title: str, heads: list[str], rows: Rows) -> list[str]:
    """Print a table as it is filled; the cells that do not hold."""
    print(f"\n{title}\n\n| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    faults = []
    for name, cells in rows:
        print(f"| {name} | {' | '.join(map(str, cells))} |", flush=True)
        faults += [
            f"{title}, {name}, {head}: {each.verdict}" for head, each in zip(heads, cells, strict=True) if each.verdict
        ]
    return faults


# ---- right or wrong -------------------------------------------------------------------------------------------------

ANSWERS = [(0.0, 0.05), (0.0, 0.20), (-0.05, 0.10), (-0.05, 0.25)]  # true difference, share of answers that change


def answers(n: int, truth: float, changing: float) -> Difference:
    drawn = rng.random(n)
    change = np.where(drawn < (changing - truth) / 2, -1.0, np.where(drawn < changing, 1.0, 0.0))
    dense = np.where(change < 0, 1.0, 0.0)
    return difference(dense, dense + change)


def right_or_wrong() -> Rows:
    for n in (2, 3, 5, 10, 20, 50, 200, 1200):
        yield str(n), [cell(truth, 0, partial(answers, n, truth, changing)) for truth, changing in ANSWERS]


# ---- means ----------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[int], Floats]] = {
    "normal": lambda n: rng.normal(size=n),
    "t of 3 degrees": lambda n: rng.standard_t(3, n),
    "exponential": lambda n: rng.exponential(size=n) - 1,
    "log-normal": lambda n: rng.lognormal(size=n) - np.exp(0.5),
    "a tenth lose up to 1": lambda n: 0.05 - (rng.random(n) < 0.1) * rng.random(n),
    "a fifth lose up to 1": lambda n: 0.1 - (rng.random(n) < 0.2) * rng.random(n),
}


def changes(n: int, name: str) -> Difference:
    return difference(np.zeros(n), CHANGES[name](n))


def means() -> Rows:
    for n in (5, 10, 20, 50, 200, 1200):
        yield str(n), [cell(0, 0, partial(changes, n, name)) for name in CHANGES]


def clustered(k: int, size: int = 10) -> Difference:
    change = rng.normal(0, 0.5**0.5, (k, 1)) + rng.normal(0, 0.5**0.5, (k, size))
    return difference(np.zeros(k * size), change.ravel(), np.repeat(np.arange(k), size))


def clustered_answers(k: int, size: int = 10) -> Difference:
    share = rng.beta(0.5, 0.5, (k, 2, 1))  # rho .5, of dense and the method apart
    right = (rng.random((k, 2, size)) < share).astype(float)
    return difference(right[:, 0].ravel(), right[:, 1].ravel(), np.repeat(np.arange(k), size))


def clusters() -> Rows:
    for k in (5, 10, 20, 50):
        yield str(k), [cell(0, 0, partial(clustered, k)), cell(0, 0, partial(clustered_answers, k))]


def word_perplexities(n: int, spread: float) -> Difference:
    words = rng.lognormal(4, spread, n)
    dense, method = (np.stack([-words * rng.normal(2, 0.3, n), words], axis=1) for _ in range(2))
    return statistic_difference(dense, method, weighted_perplexity)


def perplexities() -> Rows:
    for n in (10, 20, 60, 200):
        yield str(n), [cell(0, 0, partial(word_perplexities, n, spread)) for spread in (0.2, 1.0)]


# ---- costs ----------------------------------------------------------------------------------------------------------

Shape = tuple[int, int, int]
"""Prompts, rounds, prompts in a turn."""


def _clock(shape: Shape) -> NDArray[np.int64]:
    """When each was measured, [prompts, rounds, dense or method]: both take turns of so many prompts."""
    prompts, rounds, chunk = shape
    times = np.empty((prompts, rounds, 2), dtype=int)
    now = 0
    for turn in range(rounds):
        order = rng.permutation(prompts)
        for start in range(0, prompts, chunk):
            served = order[start : start + chunk]
            for participant in rng.permutation(2):
                times[served, turn, participant] = now + np.arange(len(served))
                now += len(served)
    return times


def _lognormal(shape: Shape) -> Floats:
    return rng.lognormal(0, 0.05, (*shape[:2], 2))


def _heavy(shape: Shape) -> Floats:
    size = (*shape[:2], 2)
    return np.exp(0.03 * rng.standard_t(2, size)) * np.where(rng.random(size) < 0.05, 3.0, 1.0)


def _bursts(shape: Shape) -> Floats:
    """A tenth of the time something else runs, for some ten measurements, and all takes twice as long."""
    clock = _clock(shape)
    busy = np.zeros(clock.size)
    for start in rng.integers(0, clock.size, max(1, clock.size // 100)):
        busy[start : start + rng.integers(5, 16)] = 1
    return _lognormal(shape) * (1 + busy)[clock]


def _drift(shape: Shape) -> Floats:
    clock = _clock(shape)
    return _lognormal(shape) * (1 + 0.3 * clock / clock.size)


NOISE = {"log-normal": _lognormal, "heavy tail": _heavy, "bursts": _bursts, "drift of 30 %": _drift}


def timings(shape: Shape, name: str, effect: float) -> Ratio:
    base = rng.uniform(0.5, 2.0, (shape[0], 1))  # [prompts, 1]
    measured = base[..., None] * NOISE[name](shape)  # [prompts, rounds, dense or method]
    return paired_ratio(measured[..., 0], measured[..., 1] * rng.lognormal(0, effect, base.shape))


def times(effect: float, chunk: int) -> Rows:
    for prompts in (4, 6, 12, 20):
        for rounds in (3, 5):
            shape = (prompts, rounds, chunk)
            yield f"{prompts} x {rounds}", [cell(1, 1, partial(timings, shape, name, effect)) for name in NOISE]


MEAN_LENGTH = float(np.exp(5 + 0.7**2 / 2))
WORK: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "three paths": (0.77, lambda length: length * rng.choice([1.0, 0.8, 0.5], len(length), p=[0.3, 0.4, 0.3])),
    "a path taken by a tenth": (0.95, lambda length: length * np.where(rng.random(len(length)) < 0.1, 0.5, 1.0)),
    "exits anywhere": (2 / 3, lambda length: length * rng.beta(2, 1, len(length))),
    "a part that no layer does": (0.8 + 10 / MEAN_LENGTH, lambda length: 0.8 * length + 10),
}


def totals(n: int, name: str) -> Ratio:
    lengths = rng.lognormal(5, 0.7, n)  # [documents]
    return total_ratio(lengths, WORK[name][1](lengths))


def work() -> Rows:
    for n in (5, 10, 20, 50, 200):
        yield str(n), [cell(truth, None, partial(totals, n, name)) for name, (truth, _) in WORK.items()]


# ---- what can be seen, and how wide ---------------------------------------------------------------------------------


def seen() -> None:
    """How often a difference is found that is called detectable."""
    print("\nDifferences that are called detectable are found in\n")
    for n, changing in ((20, 0.5), (50, 0.2), (200, 0.2), (1200, 0.1), (1200, 0.0)):
        least = detectable(n, round(n * changing))
        shown = [answers(n, -least, max(changing, least)).p < 0.05 for _ in range(DRAWS)]
        print(f"- {np.mean(shown):.3f}: {least:.4f} of {n} documents of which {changing:.0%} change")
    for n in (20, 50, 200):
        least = float(np.mean([difference(np.zeros(n), rng.normal(size=n)).detectable for _ in range(200)]))
        shown = [difference(np.zeros(n), rng.normal(least, 1, n)).p < 0.05 for _ in range(DRAWS)]
        print(f"- {np.mean(shown):.3f}: {least:.4f} of {n} normal changes")


def tango(lost: int, gained: int, n: int) -> tuple[float, float]:
    """Tango's score interval, "Equivalence test and confidence interval for the difference in proportions", 1998."""

    def distance(d: float, bound: float) -> float:
        b, c = -gained - lost + (2 * n - gained + lost) * d, -lost * d * (1 - d)
        q = (np.sqrt(max(b * b - 8 * n * c, 0)) - b) / (4 * n)
        return (gained - lost - n * d) / np.sqrt(max(n * (2 * q + d * (1 - d)), 1e-12)) - bound

    value, edge = (gained - lost) / n, 1 - 1e-9
    return brentq(distance, -edge, value, args=(1.96,)), brentq(distance, value, edge, args=(-1.96,))


def widths() -> None:
    """Beside two usual intervals, which are narrower because they may cover less."""
    print("\n| documents | lost | gained | width | Tango's | normal |\n|---|---|---|---|---|---|")
    for n, lost, gained in ((50, 6, 4), (200, 5, 5), (200, 35, 15), (1200, 30, 30), (1200, 90, 30), (1200, 180, 120)):
        low, high = interval(lost, gained, n)
        below, above = tango(lost, gained, n)
        normal = 2 * 1.96 * np.sqrt((lost + gained - (gained - lost) ** 2 / n) / (n * (n - 1)))
        print(f"| {n} | {lost} | {gained} | {high - low:.4f} | {above - below:.4f} | {normal:.4f} |")


def main() -> None:
    print("Cells: coverage (of the share of draws that have an interval) / share of draws with p < .05")
    changing = [f"true {truth:g}, {changing:.0%} change" for truth, changing in ANSWERS]
    faults = table("Right or wrong", changing, right_or_wrong())
    faults += table("Means, true difference 0", list(CHANGES), means())
    faults += table("Clusters of 10 documents, rho .5", ["normal", "right or wrong"], clusters())
    faults += table("Word perplexities", ["lengths alike", "lengths log-normal"], perplexities())
    for effect in (0.0, 0.1):
        title = f"Cost ratios, prompts x rounds, turns of 3 prompts, an effect of sd {effect:.0%} on each prompt"
        faults += table(title, list(NOISE), times(effect, chunk=3))
    faults += table("Ratios of totals", list(WORK), work())
    table("Beyond what intervals hold for: turns of all prompts", list(NOISE), times(0.0, chunk=20))
    seen()
    widths()
    print("\n" + ("\n".join(["Do not hold:", *faults]) if faults else "All hold."))


if __name__ == "__main__":
    main()
