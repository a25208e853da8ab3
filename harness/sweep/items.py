"""What a worker is given and what it answers, as plain data."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from harness.run.spec import Job


class Item(BaseModel):
    """One piece of a sweep. It names no id of a run: ids are computed where the run runs.

    Attributes:
        kind: "quality" evaluates one method on one task; "compare" puts the runs of a task beside dense; "costs" models
            and measures all runs of a task, and wants the machine to itself.
        stack: which of the job's methods, by its place among them; None where the item is about all.
        label: the method, for people.
        wait: wait for another process that is at the run, instead of answering "busy".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    kind: Literal["quality", "compare", "costs"]
    task: str
    stack: int | None = None
    label: str = ""
    wait: bool = False

    @property
    def name(self) -> str:
        """What it is, for people."""
        doing = {"quality": self.label, "compare": "comparing with dense", "costs": "costs"}[self.kind]
        return f"{doing} on {self.task}"


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
