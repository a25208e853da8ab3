"""Units of work: the parts of a job that any process can carry out by itself, as plain data."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Unit(BaseModel):
    """One part of a job; the job itself is handed over beside it.

    Attributes:
        kind: "quality" evaluates one method on one task; "costs" models and measures all methods of one task, and
            wants the machine to itself.
        task: the task by name.
        run: the id of the run; None where the unit is about all runs on the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["quality", "costs"]
    task: str
    run: str | None = None
