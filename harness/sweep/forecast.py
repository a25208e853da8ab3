"""How long a sweep will take: by earlier records where runs like it are there, else by timing the dense model."""

from collections import Counter
from dataclasses import dataclass, field

from harness.core.progress import Progress
from harness.core.text import duration
from harness.run.estimate import Estimate
from harness.run.session import Session
from harness.run.spec import Job
from harness.sweep.grid import Grid, Place
from harness.sweep.launcher import Launcher
from harness.sweep.threads import limited


@dataclass
class Forecast:
    """Seconds of the runs that are to be made, counted as they are planned.

    Attributes:
        runs: how many are to be made.
        known_s: seconds of those of which earlier records tell.
    """

    grid: Grid
    runs: int = field(default=0, init=False)
    known_s: float = field(default=0.0, init=False)
    _unknown: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)  # by model and task
    _jobs: dict[str, Job] = field(default_factory=dict, init=False)

    def count(self, place: Place) -> float | None:
        """Seconds of a run by earlier records; None where they do not tell, or nothing is to be made."""
        if place.state != "to run":
            return None
        self.runs += 1
        seconds = self.grid.pace.of(place.spec) if self.grid.pace else None
        if seconds is None:
            self._unknown[place.job.pretrained, place.spec.task.name] += 1
            self._jobs.setdefault(place.job.pretrained, place.job)
        else:
            self.known_s += seconds
        return seconds

    def sentences(self, launcher: Launcher, progress: Progress) -> list[str]:
        """How long it will take in words; models of which no record tells are loaded, and timed.

        Args:
            launcher: of those who will make the runs; the timing takes as many threads as each of them.
        """
        if not self.runs:
            return ["no run is to be made"]
        sessions = {name: Session(job, self.grid.store, progress) for name, job in self._jobs.items()}
        for session in sessions.values():
            session.plan.specs  # noqa: B018 - with all threads, on which kernels depend
        with limited(launcher.threads):
            estimates = {name: session.estimate() for name, session in sessions.items()}
        timed_s, untold = 0.0, 0
        for (name, task), count in self._unknown.items():
            estimate = estimates[name]
            if estimate is None or task not in estimate.scoring:
                untold += count
            else:
                timed_s += estimate.scoring[task][1] * count
        timed_s += sum(_preparing_s(each) for each in estimates.values() if each)
        costs = [each.costs_s for each in estimates.values() if each and each.costs_s]
        seeds = len(self.grid.request.seeds)
        by = " and ".join(
            [
                *(["earlier records"] if self.known_s else []),
                *(["a few forwards of dense that were timed now"] if timed_s else []),
            ]
        )
        workers = launcher.workers
        side = f" with {workers} workers" if workers > 1 else ""
        time_left = duration((self.known_s + timed_s) / workers)
        sentences = [f"{_counted(self.runs, 'run')} to make{side}, in about {time_left} by {by}"]
        if untold:
            sentences[0] += f"; how long {untold} of them take is not known"
        untimed = len(self.grid.request.pretrained) - len(costs)
        if costs:
            sentences.append(f"then costs in about {duration(sum(costs) * seeds)}, by one worker alone")
        if untimed and self.grid.request.costs.measure - {"flops"}:
            which = f" of {_counted(untimed, 'model')}" if costs else ""
            sentences.append(f"how long the costs{which} take after the scores is not known: nothing was timed")
        return sentences


def _preparing_s(estimate: Estimate) -> float:
    return sum(seconds for _, seconds in estimate.preparing.values())


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
