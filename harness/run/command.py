"""A job as the command line that asks for it, so that whoever reads a result can run it again."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from harness.contract.loose import MethodFile, file_of, kept
from harness.contract.method import Method
from harness.contract.stack import Stack, parse
from harness.run.spec import CostPlan, Job, RunSpec

FLAGS: Final = {
    "methods": "method",
    "seeds": "seed",
    "prompts": "cost_samples",
    "rounds": "repeats",
    "new_tokens": "cost_tokens",
    "accelerators": "accelerator",
    "usd_per_hour": "price",
    "budget_s": "cost_budget",
    "batch_sizes": "throughput",
}
"""Flags that have another name than the setting."""
_NO_FLAG: Final = {"seed", "windows"}
"""Settings of the costs that only a program can give."""
_FIRST: Final = {"methods", "method_args", "tasks"}
_OPTIONAL_VALUE: Final = {"apply_chat_template", "fewshot_as_multiturn"}
_JOINED: Final = {"measure", "seeds", "accelerators", "batch_sizes"}
_WORD = re.compile(r"(?:[A-Za-z_/~]|\.{1,2}/)[\w./:@~+-]*")
_CONSTANTS: Final = {"true", "false", "none", "null"}


def command(spec: RunSpec) -> str:
    """The command that makes one run of a job again: its method, its task, and everything else that was asked.

    The file of a loose method is named as it lies in the run's folder.
    """
    loose = kept(spec.stack.parts).files
    if loose:
        job = alone(spec, "+".join(_in_folder(part, loose) for part in spec.stack.parts))
        job = job.model_copy(update={"method_args": {}})
    else:
        job = alone(spec, typed(spec))
    return shlex.join(["harness", "run", *flags(job)])


def typed(spec: RunSpec) -> str:
    """A run's methods as they were written."""
    return next((text for text in spec.job.methods if _is(spec.stack, spec.job, text)), spec.stack.label)


def alone(spec: RunSpec, method: str) -> Job:
    """The job of one run of a job: its method, written so, its task, and everything else that was asked."""
    job = spec.job
    samples = job.samples and {name: chosen for name, chosen in job.samples.items() if name in spec.task.tasks}
    changes = {
        "methods": (method,),
        "method_args": {} if spec.stack.is_dense else job.method_args,
        "tasks": (spec.task.name,),
        "samples": samples,
        "name": None,
        # alone, the run would take lm-eval's mode unless it needs the other
        "score_mode": "context-first" if spec.context_first else None,
        "score_suffix": spec.evaluation.score_suffix,
        "kernel": job.kernel if spec.kernels.by_layer else None,
    }
    return Job.model_validate(job.model_dump() | changes)


def _in_folder(part: Method, files: Mapping[str, MethodFile]) -> str:
    """A method as it is written in the folder of its run, where the file of a loose one is kept."""
    file = file_of(part)
    if file is None or files.get(file.name) != file:
        return part.label
    return f"./{file.name}:{type(part).__qualname__}{part.label.removeprefix(part.name)}"


def _is(stack: Stack, job: Job, text: str) -> bool:
    named = parse(text, job.method_args if text != "dense" else None)
    return named.label == stack.label and named.fingerprint == stack.fingerprint  # the label is there at once


def flags(job: Job) -> list[str]:
    """The flags of ``harness run`` that give this job, the methods and tasks first, without those at their defaults.

    Tasks go by their names alone: flags that a suite gives to single tasks are to be the job's (see ``Job.asking``).
    """
    return list(_flags(job))


def _flags(settings: BaseModel) -> Iterator[str]:
    fields = type(settings).model_fields
    for name in sorted(fields, key=lambda name: name not in _FIRST):
        value = getattr(settings, name)
        if isinstance(value, CostPlan):
            yield from _flags(value)
        # what is measured has a default of the command line's own, which the environment may change
        elif (value != fields[name].get_default() or name == "measure") and name not in _NO_FLAG:
            yield from _flag(name, value)


def _flag(name: str, value: Any) -> Iterator[str]:
    flag = f"--{FLAGS.get(name, name)}"
    if isinstance(value, bool) and name not in _OPTIONAL_VALUE:
        yield flag if value else f"--no_{name}"
        return
    for text in value if name == "methods" else [_text(name, value)]:
        yield from [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _text(name: str, value: Any) -> str:
    """A setting's value as its flag takes it."""
    if name == "tasks":
        return ",".join(request.task for request in value)
    if name == "samples":
        return json.dumps(value)
    if name in _JOINED:
        return ",".join(map(str, sorted(value) if isinstance(value, frozenset) else value))
    if isinstance(value, Mapping):
        return _key_values(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # without the point, as people write it
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key_values(values: Mapping[str, Any]) -> str:
    """``key=value,...`` where that is read as the same values, else JSON."""
    plain = all(
        name.isidentifier() and isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _CONSTANTS
        for name, value in values.items()
    )
    return (
        ",".join(f"{name}={value}" for name, value in values.items())
        if plain
        else json.dumps(dict(values), default=str)
    )
