"""lm-eval tasks, loaded by name: only the files that a name needs are parsed, only its data is read."""

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import harness.tasks
from harness.core.errors import MethodError, TaskError, UnknownNameError
from harness.core.source import of_file
from harness.core.strangers import is_interrupt, message_of
from harness.evaluate.task_index import Known, known_names, names_in
from harness.evaluate.task_mistakes import refuse_settings, unloadable
from harness.evaluate.training_split import TrainingSplit

BUNDLED = Path(harness.tasks.__path__[0])


@dataclass(frozen=True)
class LoadedTask:
    """A name that the user gave, loaded.

    Attributes:
        name: as given: a task, a group, a tag or the path of a YAML file.
        tasks: the lm-eval tasks that it stands for, by name.
        objects: what to hand to lm-eval: the group, or the tasks.
        manager: lm-eval's task manager that loaded them.
    """

    name: str
    tasks: dict[str, Any]
    objects: list[Any]
    manager: Any

    @cached_property
    def training(self) -> TrainingSplit:
        """What methods may learn from."""
        return TrainingSplit(self.tasks)

    def reseeded(self, seed: int | None) -> Self:
        """The same tasks, which draw their few-shot examples by another seed from now on."""
        for task in self.tasks.values():
            task.set_fewshot_seed(seed=seed)
        return replace(self)  # training questions have such examples, and are drawn anew

    def documents(self, task: Any, limit: float | None, samples: dict[str, list[int]] | None) -> Iterator[Any]:
        """The documents of one task that the evaluation will score, in order.

        Raises:
            TaskError: ``samples`` names a document that the task does not have.
        """
        from lm_eval.evaluator_utils import get_sample_size

        chosen = (samples or {}).get(task.config.task)
        if chosen and max(chosen) >= (count := len(task.eval_docs)):
            raise TaskError(f"--samples: {task.config.task} has {count} documents, from 0 to {count - 1}")
        pairs = task.doc_iterator(rank=0, limit=get_sample_size(task, limit), world_size=1, samples=chosen)
        return (document for _, document in pairs)

    def configurations(self) -> dict[str, dict[str, Any]]:
        """How each task is configured, as any process writes it."""
        return {name: _written(task.config.to_dict(keep_callable=True)) for name, task in self.tasks.items()}

    def fingerprint(self, limit: float | None, samples: dict[str, list[int]] | None) -> str:
        """Digest of the task definitions, the scored documents and the few-shot documents."""
        digest = hashlib.sha256()
        for name, task in sorted(self.tasks.items()):
            config = task.config.to_dict(keep_callable=True)
            config["metadata"] = (config.get("metadata") or {}).get("version")  # the rest names places
            config.pop("dataset_kwargs", None)  # so do these; the documents tell the data
            digest.update(_digest({"name": name, "class": type(task), "config": config}))
            for document in self.documents(task, limit, samples):
                digest.update(_digest(document))
            if task.config.num_fewshot:
                for document in task.fewshot_docs() or ():
                    digest.update(_digest(document))
        return digest.hexdigest()


class TaskLoader:
    """Finds and loads tasks: lm-eval's own, the bundled ones, and those under ``include_path``.

    Later definitions of a name win: the user's over the bundled over lm-eval's.
    """

    def __init__(self, include_path: str | None = None, metadata: dict[str, Any] | None = None) -> None:
        from lm_eval.tasks import TaskManager

        if include_path and not Path(include_path).is_dir():
            raise TaskError(f"--include_path {include_path}: no such folder")
        self._include_path = include_path
        folders = [str(BUNDLED), *([include_path] if include_path else [])]
        try:
            self.manager = TaskManager(include_path=folders, include_defaults=False, metadata=metadata)
        except TypeError as error:  # lm-eval sorts the names
            raise TaskError(f"--include_path {include_path}: a task there has a name that is not text") from error
        self._own = dict(self.manager.task_index)
        self.manager._index = _OnDemand(known_names(), self._own)

    def names(self) -> dict[str, str]:
        """Every known name with its kind: "task", "group" or "tag"."""
        kinds = {name: known.kind for name, known in known_names().items()}
        kinds |= {name: entry.kind.name for name, entry in self._own.items() if isinstance(name, str)}
        return {name: kind.removeprefix("PY_").lower() for name, kind in kinds.items()}

    def resolve(self, requested: Sequence[str]) -> list[str]:
        """Expand globs and folders of YAML; refuse names that nothing has.

        Raises:
            UnknownNameError: no task, group or tag has the name.
        """
        names = self.names()
        resolved: dict[str, None] = {}
        for name in requested:
            if name in names or (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
                matches = [name]
            elif Path(name).is_dir():
                matches = sorted(str(path) for path in Path(name).glob("*.yaml"))
            else:
                matches = sorted(known for known in names if fnmatch(known, name))
            if not matches:
                self._refuse_unreadable(name)
                raise UnknownNameError("task", name, names, see="`harness ls tasks` lists them all.")
            resolved |= dict.fromkeys(matches)
        return list(resolved)

    def _refuse_unreadable(self, name: str) -> None:
        """Say which file has the name and cannot be read, which lm-eval leaves out."""
        from lm_eval.tasks._yaml_loader import load_yaml

        for path in sorted(Path(self._include_path).rglob("*.yaml")) if self._include_path else ():
            if name in (path.stem, *names_in(path)):
                try:
                    load_yaml(path, resolve_func=False)
                except Exception as error:
                    raise TaskError(f"task {name!r}: {path} cannot be read: {message_of(error)}") from error

    def load(self, name: str, overrides: "Overrides") -> LoadedTask:
        """Load one name's tasks and data, with lm-eval's own treatment of shots and generation arguments.

        Raises:
            TaskError: data that is not here and cannot be fetched, or a broken definition.
        """
        spec = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
        try:
            built = self.manager.load([spec])
        except BaseException as error:  # a task may run its author's code and fail in any way; the message says which
            if is_interrupt(error):
                raise
            raise TaskError(unloadable(name, error)) from error
        for task_name, task in built["tasks"].items():
            refuse_settings(task_name, task)
            overrides.apply(task)
        # lm-eval lists the requested group before those inside it
        outermost = list(built["groups"].values())[:1]
        return LoadedTask(name, built["tasks"], outermost or list(built["tasks"].values()), self.manager)


def refuse_without_prompt(method: str, loaded: LoadedTask) -> None:
    """Refuse a task of whole texts to a method that decides from prompts.

    Raises:
        MethodError: a decision pooled over a text that is scored looks at the tokens it is to predict.
    """
    for name, task in loaded.tasks.items():
        if task.config.output_type == "loglikelihood_rolling":
            raise MethodError(
                f"{method} decides from a document's prompt, and {name} scores whole texts (loglikelihood_rolling), "
                "which have none: a decision pooled over the text would look at the tokens that it is to predict"
            )


def refuse_shots(loaded: LoadedTask) -> None:
    """Refuse more examples in the prompt than there are documents to take them from.

    Raises:
        TaskError: with the most that the task can have.
    """
    for name, task in loaded.tasks.items():
        shots, sampler = task.config.num_fewshot or 0, getattr(task, "sampler", None)
        if not shots or sampler is None:
            continue
        # a question from the same split is not an example of itself
        asked = task.fewshot_cfg.split == task.config.test_split
        most = max(len(sampler.df) - asked, 0)
        if shots > most:
            left_out = ", the question itself left out" if asked else ""
            raise TaskError(
                f"{name}: {shots} examples in the prompt (num_fewshot) are more than the documents that they "
                f"can be taken from, which are {most}{left_out}; give --num_fewshot {most} or less"
            )


@dataclass(frozen=True)
class Overrides:
    """What the command line changes in a task, as lm-eval changes it."""

    num_fewshot: int | None = None
    gen_kwargs: dict[str, Any] | None = None
    fewshot_seed: int | None = 1234

    def apply(self, task: Any) -> None:
        """Set generation arguments, shots and the few-shot seed on the task."""
        if self.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=self.gen_kwargs, update=True)
        if self.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=self.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=self.fewshot_seed)


class _OnDemand(dict[str, Any]):
    """lm-eval's task index, filled with a name's entry when the name is first asked for."""

    def __init__(self, known: dict[str, Known], own: dict[str, Any]) -> None:
        super().__init__(own)
        self._known = known

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._known

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401 - dict.get does not ask __missing__

    def __missing__(self, name: str) -> Any:
        from lm_eval.tasks._index import Entry, Kind, TaskIndex
        from lm_eval.tasks._yaml_loader import load_yaml

        known = self._known[name]
        if known.path is None:
            entry = Entry(name=name, kind=Kind.TAG, yaml_path=None, tags=set(known.members))
        else:
            path = Path(known.path)
            config = load_yaml(path, resolve_func=False)
            entry = Entry(name, Kind[known.kind], path, config, TaskIndex._str_to_set(config.get("tag")))
        self[name] = entry
        return entry


def _written(value: Any) -> Any:
    """What a configuration holds, code by its source, and nothing by its place in memory."""
    if isinstance(value, dict):
        return {name: _written(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_written(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):
        return _without_address(value)


def _digest(value: Any) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, default=_stable, ensure_ascii=False)
    except TypeError:  # keys of several types have no order
        text = json.dumps(_with_text_keys(value), sort_keys=True, default=_stable, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {f"{type(key).__name__} {key}": _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list | tuple) else value


def _stable(value: Any) -> Any:
    """What JSON cannot hold, written the same in every process: code is its file and what that imports."""
    if isinstance(value, partial):
        return [_stable(value.func), list(value.args), value.keywords]
    if inspect.isfunction(value) or inspect.isclass(value):
        with suppress(OSError, TypeError):
            path = Path(inspect.getfile(value))
            return f"{value.__qualname__} in {of_file(path, path.name).digest}"
    if isinstance(value, set | frozenset):
        return str(sorted(map(_stable, value)))
    return _without_address(value)


def _without_address(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
