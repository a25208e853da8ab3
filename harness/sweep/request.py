"""What a sweep is asked: lists of methods, tasks, models and seeds, and the settings that all its runs share."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice, product
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.contract.method import written
from harness.core.errors import HarnessError, SpecError, UnknownNameError
from harness.evaluate import suites
from harness.evaluate.suites import TaskRequest
from harness.measure.accelerators import HOST, names
from harness.run.command import FLAGS
from harness.run.spec import CostPlan, Job
from harness.sweep import ranges

Seeds = tuple[int | None, int | None, int | None, int | None]
_T = TypeVar("_T")

_ALIASES: Final = {"method": "methods", "task": "tasks", "seed": "seeds"}
_COSTS: Final = {FLAGS.get(name, name): name for name in CostPlan.model_fields if name != "seed"}
"""Settings of the costs by the names of their flags."""
_NOT_SHARED: Final = {"methods", "method_args", "tasks", "pretrained", "seeds", "costs", "resume", "write_out"}
"""Settings of a job that a sweep sets itself, or cannot have."""
_SHARED: Final = tuple(name for name in Job.model_fields if name not in _NOT_SHARED)
_LISTED: Final = {"measure", "accelerator"}
"""Settings of several names, which a text separates by commas."""
_MOST_ENTRIES: Final = 100_000
"""Values in a file, those that are written once and repeated by aliases counted as often."""


class Request(BaseModel):
    """A grid: every method on every task, for every model and every seed.

    Attributes:
        methods: as the command line writes them, ranges and choices resolved.
        seeds: for Python, numpy, torch and the few-shot sampler; one number stands for all four.
        settings: what all runs share: of a ``Job``, by lm-eval's names.
        costs: what is measured after the scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    methods: tuple[str, ...] = ("dense",)
    tasks: tuple[TaskRequest, ...] = Field(min_length=1)
    pretrained: tuple[str, ...] = Field(default=("pocket",), min_length=1)
    seeds: tuple[Seeds, ...] = Field(default=((0, 1234, 1234, 1234),), min_length=1)
    settings: dict[str, Any] = {}
    costs: CostPlan = CostPlan()

    @model_validator(mode="before")
    @classmethod
    def _sorted(cls, given: Any) -> Any:
        """Settings by the names of flags put where they belong."""
        known = [*cls.model_fields.keys() - {"settings", "costs"}, "suite", *_ALIASES, *_SHARED, *_COSTS]
        request: dict[str, Any] = {"settings": {}, "costs": {}}
        for name, value in given.items():
            if name not in known:
                raise UnknownNameError("setting", str(name), known, see="`harness run --help` says what each is.")
            own = _ALIASES.get(name, name)
            if own in _COSTS:
                request["costs"][_COSTS[own]] = value.split(",") if own in _LISTED and isinstance(value, str) else value
            elif own in cls.model_fields:
                if own in request:
                    raise SpecError(f"{name} and {own} are one setting: give one of them")
                request[own] = value
            elif own != "suite":
                request["settings"][own] = value
        if "suite" in given:
            if "tasks" in request:
                raise SpecError("suite and tasks exclude each other: give one, or write a suite of your own as YAML")
            request["tasks"] = suites.load(str(given["suite"])).tasks
        return request

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, given: Any) -> tuple[str, ...]:
        return _each_once("methods", (text for each in _list(given) for text in _written_methods(each)))

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, given: Any) -> list[Any]:
        return [
            name
            for each in _list(given)
            for name in (each.replace(",", " ").split() if isinstance(each, str) else [each])
        ]

    @field_validator("pretrained", mode="before")
    @classmethod
    def _pretrained(cls, given: Any) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(map(str, _list(given))))

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, given: Any) -> tuple[Seeds, ...]:
        return _each_once("seeds", (seeds for each in _list(given) for seeds in _of_one(each)))

    @field_validator("costs")
    @classmethod
    def _machines(cls, plan: CostPlan) -> CostPlan:
        known = [*names(), HOST]
        for name in plan.accelerators:
            if name not in known:
                raise UnknownNameError("accelerator", name, known, see=f"Known: {', '.join(known)}.")
        return plan

    @model_validator(mode="after")
    def _possible(self) -> "Request":
        next(self.jobs())  # the first has all settings
        return self

    def jobs(self) -> Iterator[Job]:
        """One job for each model and seed, those of one model together; each has all methods and all tasks."""
        for pretrained, seeds in product(self.pretrained, self.seeds):
            yield Job.model_validate(
                {
                    **self.settings,
                    "methods": self.methods,
                    "tasks": self.tasks,
                    "pretrained": pretrained,
                    "seeds": seeds,
                    "costs": self.costs,
                }
            )


def asked(given: Mapping[str, Any]) -> Request:
    """A request from settings by the names of flags.

    Raises:
        HarnessError: a setting that there is not, or a value that it cannot have, in one sentence.
    """
    try:
        return Request.model_validate(dict(given))
    except ValidationError as error:
        raise _sentence(error) from error


def read(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        SpecError: unreadable, no mapping, too large, or a value that is neither text nor number.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise SpecError(f"{path}: expected a mapping of settings to values, such as `method: layer-drop:count=1..6`")
    for number, value in enumerate(_entries(given)):
        if number == _MOST_ENTRIES:
            raise SpecError(f"{path}: that is more than {_MOST_ENTRIES:,} values")
        if not isinstance(value, str | int | float | list | dict | None):
            raise SpecError(f"{path}: {value} is read as a {type(value).__name__}: put it between quotes")
    return {str(name).replace("-", "_"): value for name, value in given.items() if value is not None}


def _entries(given: Any) -> Iterator[Any]:
    """Everything in what was read, lists and mappings too; without end where one holds itself."""
    waiting = [given]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def merged(file: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, with flags that were given in their place."""
    chosen = {name: value for name, value in flags.items() if value is not None and value != []}
    gone = {*chosen, *(alias for alias, name in _ALIASES.items() if name in chosen)}
    if gone & {"tasks", "suite"}:  # one is given for the other
        gone |= {"task", "tasks", "suite"}
    return {name: value for name, value in file.items() if name not in gone} | chosen


def _sentence(error: ValidationError) -> HarnessError:
    """The first of pydantic's complaints."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])).removeprefix("settings.").removeprefix("costs.")
    if problem["loc"] == ("tasks",) and problem["type"] in ("missing", "too_short"):
        return SpecError("which task? Give task: NAME or suite: NAME: `harness ls tasks`, `harness ls suites`.")
    expected = _quoted(problem.get("ctx", {}).get("expected", ""))
    near = get_close_matches(str(problem["input"]), expected, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    flag = FLAGS.get(where.partition(".")[0], where) if where else "the sweep"
    return SpecError(f"{flag}: {problem['msg'].removeprefix('Value error, ')}{hint}")


def _quoted(text: str) -> list[str]:
    """The words between single quotes."""
    return text.split("'")[1::2]


def _each_once(name: str, values: Iterable[_T]) -> tuple[_T, ...]:
    """What a setting lists, in its order."""
    listed = list(islice(values, ranges.MOST + 1))
    if len(listed) > ranges.MOST:
        raise SpecError(f"{name}: that is more than {ranges.MOST:,}; make several sweeps of them")
    return tuple(dict.fromkeys(listed))


def _list(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _written_methods(given: Any) -> Iterable[str]:
    """A method as text, or as a mapping of ``method`` and its parameters, of which a list has choices."""
    if isinstance(given, str):
        return ranges.methods(given)
    if not isinstance(given, dict) or not isinstance(given.get("method"), str):
        raise SpecError(
            f"method: expected name:key=value or a mapping with the key method, got {ranges.shortened(repr(given))}"
        )
    arguments = {key: value for key, value in given.items() if key != "method"}
    text = ",".join(f"{key}={'|'.join(map(written, _list(value)))}" for key, value in arguments.items())
    return ranges.methods(f"{given['method']}:{text}" if text else given["method"])


def _of_one(given: Any) -> Iterator[Seeds]:
    """Seeds from a number, a range, a choice, or four numbers."""
    if isinstance(given, list | tuple):
        given = ",".join(map(str, given))
    for text in ranges.values(str(given), "seeds"):
        try:
            numbers = [None if part.strip() == "None" else int(part) for part in text.split(",")]
        except ValueError as error:
            raise SpecError(
                f"seeds={ranges.shortened(text)}: expected whole numbers, such as 0..4, or four of them"
            ) from error
        if len(numbers) not in (1, 4):
            raise SpecError(f"seeds={ranges.shortened(text)}: expected one number or four, got {len(numbers)}")
        first, second, third, fourth = numbers * (4 // len(numbers))
        yield first, second, third, fourth
