"""Whether a task's data is on this machine, read off its YAML and the names of cache folders alone.

Without a network the library ``datasets`` takes prepared Arrow folders and nothing else, not even files that the hub
cache holds; so these folders are what is looked for, by the rules of ``datasets.packaged_modules.cache``.
"""

import ast
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import harness.tasks
from harness.core.files import parse_json
from harness.evaluate.task_index import Known, known_names, scan

_BUNDLED = Path(harness.tasks.__path__[0])
_Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""Data sets that are files, by the names under which ``datasets`` reads them."""


class State(StrEnum):
    """Where a task's data is."""

    BUNDLED = "bundled"
    HERE = "here"
    ABSENT = "not here"
    UNKNOWN = "unknown"  # the task's own code fetches it


@dataclass(frozen=True)
class Data:
    """The data of one task.

    Attributes:
        source: the data set and its configuration, as the task names them.
        folder: its prepared folder in the cache.
    """

    state: State
    source: str = ""
    folder: Path | None = None


class Catalogue:
    """All names that tasks, groups and tags have, and what is known of their data."""

    def __init__(self, include_path: str | None = None) -> None:
        own = scan(Path(include_path)) if include_path else {}
        self.names: dict[str, Known] = {**known_names(), **scan(_BUNDLED), **own}

    def data(self, name: str) -> dict[str, Data]:
        """The data of every task that a name stands for."""
        try:
            return {task: _data(config) for task, config in self._leaves(name)}
        except (OSError, yaml.YAMLError, SyntaxError, KeyError, TypeError, ValueError, RecursionError):
            return {name: Data(State.UNKNOWN)}  # a broken definition, which lm-eval will explain

    def summary(self, name: str) -> str:
        """The state of a name's data in a word, or how many of a group's tasks have their data."""
        states = Counter(data.state for data in self.data(name).values())
        if len(states) == 1:
            return str(next(iter(states)))
        return f"{states[State.HERE] + states[State.BUNDLED]} of {states.total()} here"

    def metadata(self, name: str) -> dict[str, Any]:
        """What the YAML of one task says beside its definition; nothing of a group, a tag or what cannot be read."""
        known = self.names.get(name)
        try:
            config = _read(known.path) if known is not None and known.path is not None else {}
        except (OSError, yaml.YAMLError, TypeError, ValueError, RecursionError):
            return {}
        metadata = config.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    def _leaves(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        known = self.names.get(name) or _of_file(name)
        if known.path is None:
            for member in known.members:
                yield from self._leaves(member)
        elif Path(known.path).is_relative_to(_BUNDLED) and known.kind != "GROUP":
            config = _read(known.path)
            yield name, config if "dataset_path" in config else {"bundled": True}
        elif known.kind == "GROUP":
            yield from self._members(_read(known.path))
        else:
            yield name, _read(known.path)

    def _members(self, group: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tasks of a group: names, names with changes, groups and tasks written out in place."""
        for member in group.get("task") or ():
            entry = {"task": member} if isinstance(member, str) else member
            name = entry.get("group") or entry["task"]
            if name in self.names:
                changes = {key: value for key, value in entry.items() if key.startswith("dataset_")}
                for task, config in self._leaves(name):
                    yield task, config | changes
            elif "group" in entry:
                yield from self._members(entry)
            else:
                yield name, entry


def _of_file(name: str) -> Known:
    """A task or group that is named by its YAML file."""
    return Known("GROUP" if "group" in _read(name) else "TASK", name, [])


def datasets_cache() -> Path:
    """Where ``datasets`` keeps prepared data, without importing it."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")


def _data(config: dict[str, Any]) -> Data:
    if config.get("bundled"):
        return Data(State.BUNDLED)
    path, name = config.get("dataset_path"), config.get("dataset_name")
    if path is None and "class" in config:
        path, name = _of_class(config["class"])
    kwargs = {key: value for key, value in (config.get("dataset_kwargs") or {}).items() if key != "trust_remote_code"}
    if path is None or config.get("custom_dataset") or "features" in kwargs:
        return Data(State.UNKNOWN)
    source = ", ".join(str(part) for part in (path, name) if part)
    if path in FILE_FORMATS:
        return Data(State.HERE if _local_files(kwargs.get("data_files")) else State.ABSENT, source)
    if Path(path).is_dir():
        return Data(State.HERE, source)
    folder = _prepared(path, name, kwargs)
    return Data(State.HERE if folder else State.ABSENT, source, folder)


def _local_files(given: Any) -> bool:
    """Whether all of these data files are on this machine; addresses are not."""
    if isinstance(given, dict):
        return all(_local_files(value) for value in given.values())
    if isinstance(given, list):
        return all(_local_files(value) for value in given)
    return isinstance(given, str) and bool(glob.glob(given))  # noqa: PTH207 - a pattern may be absolute


def _prepared(path: str, name: str | None, kwargs: dict[str, Any]) -> Path | None:
    """The folder that ``datasets`` would take when the hub is out of reach: the newest that fits."""
    *namespace, last = path.split("/")
    root = datasets_cache() / "___".join([*namespace, _snake_case(last)])
    if not root.is_dir():
        return None
    config = glob.escape(_config_id(name, kwargs)) if name or kwargs else "*"
    folders = [folder for folder in root.glob(f"{config}/*/*") if _is_config(folder, exact=not kwargs)]
    if not folders:
        return None
    newest = max(folders, key=lambda folder: folder.stat().st_mtime)
    alike = [folder for folder in folders if folder.parts[-2:] == newest.parts[-2:]]
    return newest if len(alike) == 1 else None  # where there are several configurations, datasets needs a name


def _is_config(folder: Path, *, exact: bool) -> bool:
    """Whether a folder is a complete data set, of the configuration that its path names."""
    info = folder / "dataset_info.json"
    return info.is_file() and (not exact or parse_json(info.read_bytes())["config_name"] == folder.parts[-3])


def _config_id(name: str | None, kwargs: dict[str, Any]) -> str:
    """The name of a configuration's folder; arguments such as data files are a digest of ``datasets`` in it."""
    if not kwargs:
        return str(name)
    import inspect

    import datasets

    loading = set(inspect.signature(datasets.load_dataset).parameters) - {"data_dir", "data_files"}
    config = {key: value for key, value in kwargs.items() if key not in loading}
    return str(datasets.BuilderConfig(name or "default").create_config_id(config))


def _snake_case(name: str) -> str:
    """As ``datasets.naming`` writes folder names; importing that imports all of datasets."""
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", name).lower()


class _Loader(_Base):  # type: ignore[misc, valid-type]
    """Safe YAML, with lm-eval's tag for functions left as the place where the function is."""


_Loader.add_constructor("!function", lambda _, node: f"{Path(node.start_mark.name).parent}/{node.value}")


@cache
def _read(path: str) -> dict[str, Any]:
    """A task's YAML over what it includes."""
    with Path(path).open("rb") as file:
        config: dict[str, Any] = yaml.load(file, Loader=_Loader)  # noqa: S506 - a safe loader
    include = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [include] if isinstance(include, str) else include:
        merged |= _read(os.path.normpath(Path(path).parent / name))
    return merged | config


def _of_class(reference: str) -> tuple[str | None, str | None]:
    """DATASET_PATH and DATASET_NAME of a task that is a Python class, read without running it."""
    module, _, name = reference.rpartition(".")
    tree = ast.parse(Path(f"{module}.py").read_bytes())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    constants: dict[str, str | None] = {}
    while name in classes:
        node = classes.pop(name)
        for line in node.body:
            if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant):
                for target in line.targets:
                    constants.setdefault(ast.unparse(target), line.value.value)  # type: ignore[arg-type]
        name = ast.unparse(node.bases[0]) if node.bases else ""
    return constants.get("DATASET_PATH"), constants.get("DATASET_NAME")
