"""Suites: named lists of tasks, each with the flags that its results are to be compared under."""

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import harness.tasks
from harness.core.errors import HarnessError, SuiteError, UnknownNameError

BUNDLED = Path(harness.tasks.__path__[0]) / "suites"


class TaskRequest(BaseModel):
    """A task by name, with its flags by lm-eval's names; None leaves a flag to the task. A plain name is one too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gen_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"task": given} if isinstance(given, str) else given


class Suite(BaseModel):
    """A list of tasks.

    Attributes:
        summary: what it is, in a line.
        paper: where its tasks and flags come from.
        left_out: what the paper measures and the suite does not, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str = ""
    paper: str | None = None
    tasks: tuple[TaskRequest, ...] = Field(min_length=1)
    left_out: dict[str, str] = {}

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, requests: tuple[TaskRequest, ...]) -> tuple[TaskRequest, ...]:
        seen: set[str] = set()
        for request in requests:
            if request.task in seen:  # a run is compared with the dense run of the same task
                raise ValueError(f"{request.task} is listed twice")
            seen.add(request.task)
        return requests


def names() -> list[str]:
    """The bundled suites."""
    return sorted(path.stem for path in BUNDLED.glob("*.yaml"))


def is_suite(path: str) -> bool:
    """Whether a file is the YAML of a suite, and not of a task."""
    if not path.endswith((".yaml", ".yml")) or not Path(path).is_file():
        return False
    return bool(re.search(r"^tasks\s*:", Path(path).read_text(encoding="utf-8", errors="replace"), re.MULTILINE))


def load(name: str) -> Suite:
    """A bundled suite by name, or one of the user's own by the path of its YAML file.

    Raises:
        UnknownNameError: no such suite, or a key that suites do not have.
        SuiteError: the file cannot be read, or a value is not what its key takes.
    """
    own = name.endswith((".yaml", ".yml"))
    if not own and name not in names():
        raise UnknownNameError("suite", name, names(), see="`harness ls suites` lists them; your own is a YAML file.")
    path = Path(name) if own else BUNDLED / f"{name}.yaml"
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SuiteError(f"suite {name} cannot be read: {' '.join(str(error).split())}") from error
    try:
        return Suite.model_validate(given)
    except ValidationError as error:
        raise _explained(name, error) from error


def _explained(name: str, error: ValidationError) -> HarnessError:
    """The first of pydantic's complaints as a sentence."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        keys = Suite.model_fields if len(problem["loc"]) == 1 else TaskRequest.model_fields
        see = f"There are {', '.join(keys)}."
        return UnknownNameError(f"key in suite {name}, at {where},", str(problem["loc"][-1]), keys, see=see)
    return SuiteError(f"suite {name}: {where or 'the file'}: {problem['msg'].removeprefix('Value error, ')}")
