"""What a worker is given and what it answers, as plain data."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.evaluate.shard import Shard
from harness.run.spec import Job


class Item(BaseModel):
    """One piece of a sweep. It names no id of a run: ids are computed where the run runs.

    Attributes:
        kind: "quality" evaluates one method on one task; "shard" a part of the same; "compare" puts the runs of a task
            beside dense; "costs" models and measures all runs of a task, and wants the machine to itself.
        stack: which of the job's methods, by its place among them; None where the item is about all.
        label: the method, for people.
        shard: which part.
        spent_s: seconds that the parts took together, where "quality" makes a record of them.
        wait: wait for another process that is at the run, instead of answering "busy".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    kind: Literal["quality", "shard", "compare", "costs"]
    task: str
    stack: int | None = None
    label: str = ""
    shard: Shard | None = None
    spent_s: float = 0.0
    wait: bool = False

    @property
    def name(self) -> str:
        """What it is, for people."""
        doing = {"compare": "comparing with dense", "costs": "costs"}.get(self.kind, self.label)
        part = f", shard {self.shard.index + 1} of {self.shard.count}" if self.shard else ""
        return f"{doing} on {self.task}{part}"


class Outcome(BaseModel):
    """What came of an item.

    Attributes:
        state: "done"; "lowered", done with a smaller batch than was asked for; "failed"; "busy", another process is at
            the run; "stopped", nothing more can be done here, such as with a full disk.
        run: the id of the run, where there is one.
        reason: why it failed, or was lowered.
        score: the first of its scores, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["done", "lowered", "failed", "busy", "stopped"]
    run: str | None = None
    reason: str = ""
    score: str = ""
