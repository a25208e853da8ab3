"""lm-eval's tasks by name without parsing all of them.

lm-eval parses 14,000 YAML files before it knows one task's name, which takes longer than many evaluations. Here
the files are scanned for the few lines that name things, the result is cached per lm-eval version, and only what
is asked for is parsed, by lm-eval's own loader.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import yaml

from harness.core.errors import DiskError
from harness.core.files import parse_json, write_atomic
from harness.core.paths import cache_folder

# A top-level naming key with its value: the rest of the line and the indented or dashed lines under it.
_NAMING = re.compile(
    rb"""^["']?(task|group|tag|include|class)["']?[ \t]*:(.*(?:\n[ \t]*-.*|\n[ \t]+\S.*|\n[ \t]*\#.*)*)""",
    re.MULTILINE,
)
# A value that needs no parser: not a number, and not one of YAML's words for true, false and null.
_PLAIN = re.compile(
    rb"""[ \t]*(?!(?i:null|true|false|yes|no|on|off)\b(?![./-]))([a-z_][\w./-]*)[ \t]*(?:\#.*)?""", re.IGNORECASE
)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_IGNORED = ("__pycache__", ".ipynb_checkpoints")


class Known(NamedTuple):
    """What a name stands for: "TASK", "PY_TASK", "GROUP" or "TAG"; a tag has members and no file."""

    kind: str
    path: str | None
    members: list[str]


def known_names() -> dict[str, Known]:
    """Every name that lm-eval's own task folder defines, from the cache or from a scan of about a second."""
    root = _task_folder()
    stamp = f"{version('lm_eval')} {root} {root.stat().st_mtime_ns}"
    cache = cache_folder() / "lm-eval-tasks.json"
    try:
        return _stored(cache.read_bytes(), stamp)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no cache yet, or not this version's: scan
    names = scan(root)
    with suppress(DiskError):  # without a cache the next start scans again
        write_atomic(cache, json.dumps({"stamp": stamp, "names": names}))
    return names


@lru_cache(maxsize=1)
def _stored(content: bytes, stamp: str) -> dict[str, Known]:
    """The names in a cache's content; decoding them takes longer than reading them again."""
    stored = parse_json(content)
    if stored["stamp"] != stamp:
        raise ValueError(f"cached for {stored['stamp']}")
    return {name: Known(*known) for name, known in stored["names"].items()}


def scan(root: Path) -> dict[str, Known]:
    """The names in a folder of lm-eval YAML, with lm-eval's precedence: sorted paths, the first of a name wins."""
    names: dict[str, Known] = {}
    for path in sorted(_yaml_files(root)):
        try:
            keys = _with_includes(path, set())
        except (OSError, ValueError, TypeError):  # its includes are missing, or form a circle: lm-eval skips it too
            continue
        kind = next((kind for key, kind in _KINDS if key in keys), None)
        name = keys.get("group" if kind == "GROUP" else "task")
        if kind is None or not _is_name(name) or name in names:
            continue
        names[name] = Known(kind, path, [])
        if kind == "GROUP":
            continue
        tags = keys.get("tag") or []
        for tag in dict.fromkeys(filter(_is_name, tags if isinstance(tags, list) else [tags])):
            names.setdefault(tag, Known("TAG", None, [])).members.append(name)
    return names


def names_in(path: Path) -> list[str]:
    """The names that a file gives, read from its lines: even where the rest of it is no YAML."""
    keys = _naming_keys(str(path))
    return [keys[key] for key in ("task", "group") if _is_name(keys.get(key))]


def _is_name(value: Any) -> TypeGuard[str]:
    """Whether a command line could name it: lm-eval also lists numbers and, for ``tag: no``, False."""
    return isinstance(value, str)


_KINDS = (("class", "PY_TASK"), ("group", "GROUP"), ("task", "TASK"))


def _task_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _yaml_files(root: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _IGNORED]
        yield from (f"{Path(folder).as_posix()}/{name}" for name in files if name.endswith(".yaml"))


@cache
def _naming_keys(path: str) -> dict[str, Any]:
    """The top-level keys that name things, read from their lines alone."""
    keys: dict[str, Any] = {}
    for key, value in _NAMING.findall(Path(path).read_bytes()):
        plain = _PLAIN.fullmatch(value)
        keys[key.decode()] = plain[1].decode() if plain else _parsed(value)
    return keys


def _parsed(value: bytes) -> Any:
    try:
        return yaml.load(value.replace(b"!function", b""), Loader=_Loader)  # noqa: S506 - a safe loader
    except yaml.YAMLError:
        return None


def _with_includes(path: str, seen: set[str]) -> dict[str, Any]:
    """A file's naming keys over those of the files it includes, each of which lm-eval takes once."""
    if path in seen:
        raise ValueError(f"{path} is included twice")
    seen.add(path)
    own = _naming_keys(path)
    included: dict[str, Any] = {}
    include = own.get("include") or []
    for name in [include] if isinstance(include, str) else include:
        included |= _with_includes(os.path.normpath(os.path.join(os.path.dirname(path), name)), seen)  # noqa: PTH118, PTH120
    return included | own
