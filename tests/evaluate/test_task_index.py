"""The scan of task files finds what lm-eval's own parse finds, and its cache is only ever a shortcut."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.evaluate import task_index
from harness.evaluate.task_index import Known, known_names, scan


def lm_eval_index(root: Path) -> dict[str, tuple[str, str | None, list[str]]]:
    """lm-eval's index in the form of the scan: members of tags alone, and no names that are not text."""
    from lm_eval.tasks._index import Kind, TaskIndex

    index = TaskIndex.build([root])
    return {
        name: (
            entry.kind.name,
            entry.yaml_path and str(entry.yaml_path),
            sorted(entry.tags) if entry.kind is Kind.TAG else [],
        )
        for name, entry in index.items()
        if isinstance(name, str)
    }


def scanned_index(root: Path) -> dict[str, tuple[str, str | None, list[str]]]:
    return {
        name: (known.kind, known.path, sorted(known.members) if known.kind == "TAG" else [])
        for name, known in scan(root).items()
    }


FOLDERS: dict[str, dict[str, str]] = {
    "a task": {"a.yaml": "task: a\noutput_type: generate_until\n"},
    "a tag": {"a.yaml": "tag: t\ntask: a\n", "b.yaml": "task: b\ntag: t"},
    "tags in a list": {"a.yaml": "task: a\ntag:\n  - t\n  - u\n"},
    "tags in a list without indent": {"a.yaml": "task: a\ntag:\n- t\n- u\noutput_type: x\n"},
    "tags in brackets": {"a.yaml": "task: a\ntag: [t, 'u', \"v w\"]\n"},
    "tags over several lines": {"a.yaml": "task: a\ntag: [t,\n  u]\n"},
    "a comment among tags": {"a.yaml": "task: a\ntag:\n  - t\n  # - no\n  - u # yes\n"},
    "no tag": {"a.yaml": "task: a\ntag:\n", "b.yaml": "task: b\ntag: null\n", "c.yaml": "task: c\ntag: []\n"},
    "a group": {"g.yaml": "group: g\ntask:\n  - a\n  - b\n", "a.yaml": "task: a\n"},
    "a group of tasks written out": {
        "g.yaml": "group: g\ntask:\n  - task: a\n    tag: no\n  - group: h\n    task: [b]\n",
    },
    "a group with a tag": {"g.yaml": "group: g\ntask: [a]\ntag: t\n"},
    "a class": {"a.yaml": "task: a\nclass: !function task.Mine\n", "task.py": "class Mine: ..."},
    "a class without a name": {"a.yaml": "class: !function task.Mine\n"},
    "quoted keys": {"a.yaml": '"task": a\n\'tag\': "t"\n'},
    "quoted values": {"a.yaml": "task: 'a b'\n", "b.yaml": 'task: "b\\tc"\n', "c.yaml": "task: it's\n"},
    "odd names": {"a.yaml": "task: a-b/c.d_e\n", "b.yaml": "task: ünï (x)\n", "c.yaml": "task: a:b\n"},
    "comments": {"a.yaml": "# task: no\ntask: a # task: neither\n#tag: no\n"},
    "keys further in": {"a.yaml": "task: a\nmetadata:\n  task: no\n  tag: no\ntag: t\n"},
    "words in text": {"a.yaml": "task: a\ndescription: |\n  tag: no\n  group: no\n\n  task: no\n"},
    "the last of a key": {"a.yaml": "task: a\ntask: b\n"},
    "Windows line ends": {"a.yaml": "task: a\r\ntag:\r\n  - t\r\n"},
    "no last line end": {"a.yaml": "task: a"},
    "a document marker": {"a.yaml": "---\ntask: a\n"},
    "spaces before the colon": {"a.yaml": "task : a\n"},
    "an include": {"base": "tag: t\ntask: base\n", "a.yaml": "include: base\ntask: a\n"},
    "an include without a name of its own": {"base": "task: base\n", "a.yaml": "include: base\n"},
    "an include that overrules nothing": {"base": "tag: t\n", "a.yaml": "tag: u\ninclude: base\ntask: a\n"},
    "includes of includes": {"x/base": "tag: t\n", "y": "include: x/base\n", "a/a.yaml": "include: ../y\ntask: a\n"},
    "includes in a list": {"x": "tag: t\ntask: no\n", "y": "tag: u\n", "a.yaml": "include: [x, y]\ntask: a\n"},
    "a missing include": {"a.yaml": "include: nowhere\ntask: a\n", "b.yaml": "task: b\n"},
    "an include in a circle": {"a.yaml": "include: a.yaml\ntask: a\n", "b.yaml": "task: b\n"},
    "includes in a wider circle": {"x": "include: y\n", "y": "include: x\n", "a.yaml": "include: x\ntask: a\n"},
    "an include taken twice": {
        "x": "include: z\n",
        "y": "include: z\n",
        "z": "tag: t\n",
        "a.yaml": "include: [x, y]\ntask: a\n",
    },
    "an include that is no name": {"a.yaml": "include: {x: y}\ntask: a\n", "b.yaml": "task: b\n"},
    "the first of a name": {"b.yaml": "task: a\ntag: t\n", "a.yaml": "task: a\n", "c.yaml": "group: a\ntask: [x]\n"},
    "a tag before a task of its name": {"a.yaml": "task: a\ntag: b\n", "b.yaml": "task: b\n"},
    "a tag after a task of its name": {"a.yaml": "task: a\n", "b.yaml": "task: b\ntag: a\n"},
    "folders": {
        "x/a.yaml": "task: a\n",
        "x/y/b.yaml": "task: b\n",
        ".x/c.yaml": "task: c\n",
        "__pycache__/d.yaml": "task: d\n",
    },
    "other files": {"a.yml": "task: a\n", "b.txt": "task: b\n", "c": "task: c\n"},
    "nothing that is a task": {"a.yaml": "dataset_path: x\n", "b.yaml": "", "c.yaml": "- task\n"},
    "words that YAML reads otherwise": {"a.yaml": "task: a\ntag: null\n", "b.yaml": "task: b\ntag: [no, 'no', No]\n"},
    "words that begin like those": {"a.yaml": "task: no-1\ntag: null.x\n", "b.yaml": "task: nullify\n"},
    "names that are not text": {"a.yaml": "task: on\n", "b.yaml": "task: 12\n"},
    "quoted words": {"a.yaml": "task: 'null'\ntag: \"12\"\n"},
    "no names": {"a.yaml": "task: [x, y]\n", "b.yaml": "group: [x]\n"},
}


@pytest.mark.parametrize("what", FOLDERS)
def test_the_scan_finds_what_lm_eval_finds(what: str, tmp_path: Path) -> None:
    for name, text in FOLDERS[what].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert scanned_index(tmp_path) == lm_eval_index(tmp_path)


def test_the_scan_finds_something(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: a\ntag: t\n")
    path = f"{tmp_path.as_posix()}/a.yaml"
    assert scan(tmp_path) == {"a": Known("TASK", path, []), "t": Known("TAG", None, ["a"])}


def test_the_bundled_tasks_are_found_as_lm_eval_finds_them() -> None:
    from harness.evaluate.tasks import BUNDLED

    assert scanned_index(BUNDLED) == lm_eval_index(BUNDLED)


@pytest.mark.slow
def test_the_scan_of_lm_evals_own_tasks_is_lm_evals_index() -> None:
    root = task_index._task_folder()
    assert scanned_index(root) == lm_eval_index(root)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for a folder of one task."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "tasks"
    root.mkdir()
    (root / "a.yaml").write_text("task: a\ntag: t\n")
    monkeypatch.setattr(task_index, "_task_folder", lambda: root)
    return tmp_path / "cache" / "lm-eval-tasks.json"


def refuse(*_: Any) -> None:
    raise AssertionError("scanned")


def test_names_are_scanned_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = known_names()
    assert cache.is_file()
    monkeypatch.setattr(task_index, "scan", refuse)
    assert known_names() == first
    assert first["t"] == Known("TAG", None, ["a"])


@pytest.mark.parametrize("change", ["version", "folder"])
def test_another_lm_eval_is_scanned_again(change: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known_names()
    if change == "version":
        monkeypatch.setattr(task_index, "version", lambda _: "99")
    else:
        os.utime(cache.parent.parent / "tasks", (1, 1))
    monkeypatch.setattr(task_index, "scan", lambda _: {"new": Known("TASK", "p", [])})
    assert list(known_names()) == ["new"]
    assert "new" in cache.read_text()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", b"\xff", {"names": []}, {"names": None}, {"names": {"a": 1}}, {"names": {"a": [1]}}],
)
def test_a_corrupt_cache_is_made_again(content: Any, cache: Path) -> None:
    first = known_names()
    good = cache.read_text()
    if isinstance(content, dict):
        content = json.dumps(json.loads(good) | content)
    cache.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert known_names() == first
    assert cache.read_text() == good


def test_names_are_known_without_a_cache(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert set(known_names()) == {"a", "t"}
