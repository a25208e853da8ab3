"""Where units of work are carried out: here, or in a process of their own. Units are data, results are files."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from harness.core.errors import HarnessError
from harness.run.spec import Job
from harness.run.units import Unit


class Launcher(Protocol):
    """Carries out units of work of one job."""

    def launch(self, units: Sequence[Unit]) -> None:
        """Carry out units, in order; what they leave is in the job's folder of results when this returns.

        Raises:
            HarnessError: one failed; what was finished before it is kept.
        """


@dataclass(frozen=True)
class Inline:
    """In this process, on a model that is loaded already."""

    carry_out: Callable[[Unit], None]

    def launch(self, units: Sequence[Unit]) -> None:
        """Carry out one unit after the other."""
        for unit in units:
            self.carry_out(unit)


class Order(BaseModel):
    """What another process is given: the job, the folder of its results, and the units to carry out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    results: Path
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Isolated:
    """In one fresh interpreter: nothing of the evaluation is in its memory, caches or threads.

    Attributes:
        module: what it runs, which reads an ``Order`` as JSON from standard input.
    """

    job: Job
    results: Path
    module: str = "harness.cli.isolated"

    def launch(self, units: Sequence[Unit]) -> None:
        """Run the module; its own messages go to standard error."""
        order = Order(job=self.job, results=self.results, units=tuple(units)).model_dump_json()
        done = subprocess.run([sys.executable, "-m", self.module], input=order, text=True, check=False)  # noqa: S603 - our own module
        if done.returncode:
            raise HarnessError("the isolated cost pass failed; the scores are kept, the costs are not measured")
