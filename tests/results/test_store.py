"""Runs are found by folder and by id, and a folder that is none is refused in a sentence."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import DiskError, StoreError, UnknownNameError
from harness.results.record import RunRecord
from harness.results.store import RunFolder, Store
from tests.toys import record_json, sample_json

IDS = ("0123456789ab", "0123ffffffff", "ffffffffffff")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three finished runs."""
    store = Store(tmp_path / "runs")
    for run_id in IDS:
        finish(store.folder(run_id, "toy", "model", "task"), id=run_id)
    return store


def finish(folder: RunFolder, samples: Any = (), **changes: Any) -> None:
    folder.finish(RunRecord.model_validate(record_json(**changes)), samples, {"id": 1})


def test_a_run_is_three_plain_files(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder(IDS[0], "toy")
    folder.path.mkdir()
    for rank in (0, 1):
        folder.journal(rank).write_text("")
    finish(folder, [sample_json(), sample_json(doc_id=1)])
    assert {path.name for path in folder.path.iterdir()} == {"record.json", "samples.jsonl", "manifest.json"}


def test_a_record_comes_back_as_it_was(store: Store) -> None:
    assert store.find(IDS[0]).record() == RunRecord.model_validate(record_json(id=IDS[0]))


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    samples = [sample_json(target="a\nb\u2028\r\n\x00é😀", responses=[[[-1.25, True]]]), sample_json(doc_id=1)]
    finish(RunFolder(tmp_path), samples)
    assert list(RunFolder(tmp_path).samples()) == samples


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        ([1, {"a": float("inf")}], [1, {"a": None}]),
        ("NaN", "NaN"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.float32("nan"), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        ((1, 2), [1, 2]),
        (Path("a"), "a"),
    ],
)
def test_samples_hold_json_values_alone(value: Any, read: Any, tmp_path: Path) -> None:
    finish(RunFolder(tmp_path), [sample_json(scores={"x": value})])
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    stored = json.loads(line, parse_constant=pytest.fail)["scores"]["x"]
    assert stored == read
    assert type(stored) is type(read)


@pytest.mark.parametrize("name", [IDS[0], "01234", "f", "toy_model_task_0123456789ab"])
def test_a_run_is_found(name: str, store: Store) -> None:
    expected = IDS[2] if name == "f" else IDS[0]
    assert store.find(name).record().id == expected


def test_a_run_is_found_by_its_folder(store: Store, tmp_path: Path) -> None:
    folder = store.find(IDS[0]).path
    assert Store(tmp_path / "elsewhere").find(str(folder)).path == folder
    assert Store(tmp_path / "elsewhere").find(str(folder / "record.json")).path == folder


def test_an_ambiguous_beginning_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"'0123' fits 2 runs in .*runs: give more of the id"):
        store.find("0123")


@pytest.mark.parametrize("name", ["", "0123456789abc", "nothing", "toy", "*", "../runs/x"])
def test_an_unknown_run_is_refused(name: str, store: Store) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown run .* `harness ls runs` lists those in .*runs"):
        store.find(name)


def test_a_mistyped_id_is_answered_with_the_near_one(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean '0123456789ab'"):
        store.find("0123456789ac")


@pytest.mark.parametrize("root", ["missing", "a_file"])
def test_a_store_that_is_not_there_has_no_runs(root: str, tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("")
    assert Store(tmp_path / root).folders() == []


def test_foreign_folders_are_no_runs(store: Store) -> None:
    for name in ("notes", "toy_0123456789AB", "toy_0123456789a", "0123456789ab"):
        (store.root / name).mkdir()
    (store.root / "file_0123456789ac").write_text("")
    assert len(store.folders()) == 3


def test_the_newest_run_comes_first(store: Store) -> None:
    for age, run_id in enumerate(IDS):
        os.utime(store.find(run_id).path, (1e9 - age, 1e9 - age))
    assert [folder.path.name[-12:] for folder in store.folders()] == list(IDS)


def damage(kind: str, folder: Path) -> None:
    record = folder / "record.json"
    content: dict[str, str | bytes] = {
        "empty": "",
        "cut": record.read_text()[:100],
        "not text": b"\xff\x00\xfe",
        "a list": "[]",
        "another schema": json.dumps({"results": {}}),
        "a later version": record.read_text().replace('"schema_version": 2', '"schema_version": 3'),
        "an extra field": record.read_text().replace('"id"', '"extra": 1, "id"', 1),
        "a text for a number": record.read_text().replace('"duration_s": 1.5', '"duration_s": "long"'),
        "another id": record.read_text().replace("0123456789ab", "0123456789AB"),
    }
    record.unlink()
    if kind == "a folder":
        record.mkdir()
    elif kind != "missing":
        text = content[kind]
        record.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "holds no finished run .no record.json."),
        ("a folder", "cannot be read: Is a directory"),
        ("empty", "is not a run record: the document: Invalid JSON"),
        ("cut", "is not a run record: the document: Invalid JSON"),
        ("not text", "is not a run record: the document: Invalid JSON"),
        ("a list", "is not a run record: the document: Input should be an object"),
        ("another schema", "is not a run record: id: Field required"),
        ("a later version", "is not a run record: schema_version: Input should be 2"),
        ("an extra field", "is not a run record: extra: Extra inputs are not permitted"),
        ("a text for a number", "is not a run record: duration_s: Input should be a valid number"),
        ("another id", "is not a run record: id: String should match pattern"),
    ],
)
def test_what_is_no_record_is_refused_in_a_sentence(kind: str, sentence: str, store: Store) -> None:
    folder = store.find(IDS[0])
    damage(kind, folder.path)
    with pytest.raises(StoreError, match=sentence):
        folder.record()


def test_a_record_that_may_not_be_read_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"record.json cannot be read: Permission denied"):
        store.find(IDS[0]).record()


@pytest.mark.parametrize("content", [None, b"{}\n{", b"\xff\n", b"{}\n\n", b"{}\n", b'{"task": "t", "doc_id": 0}\n'])
def test_samples_that_cannot_be_read_are_refused(content: bytes | None, store: Store) -> None:
    folder = store.find(IDS[0])
    (folder.path / "samples.jsonl").unlink()
    if content is not None:
        (folder.path / "samples.jsonl").write_bytes(content)
    with pytest.raises(StoreError, match=r"samples.jsonl cannot be read"):
        list(folder.samples())


NAMES = [
    "../../etc",
    "..",
    ".",
    "/",
    "a/b",
    "./my.py:Mine:count=2",
    "a b\tc",
    "a\nb",
    "\0",
    "-",
    "~",
    "C:\\x",
    "模型" * 50,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_named_for_people_and_stays_in_the_store(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    folder = store.folder(IDS[0], name, name, name)
    assert folder.path.parent == store.root
    assert folder.path.name.isascii()
    assert folder.path.name.isprintable()
    assert not folder.path.name.startswith((".", "-"))
    finish(folder)
    assert store.find(IDS[0]).path == folder.path
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_long_names_are_cut(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder(IDS[0], *(letter * 300 for letter in "abc"))
    finish(folder)
    assert len(folder.path.name) < 200


def test_a_label_stays_readable(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder(IDS[0], "layer-drop:count=2,unit=mlp+toy", "tiny/llama", "arc_easy")
    assert folder.path.name == f"layer-drop-count=2-unit=mlp-toy_tiny-llama_arc_easy_{IDS[0]}"


def test_names_in_other_scripts_are_told_apart(tmp_path: Path) -> None:
    names = ["модель", "模型", "…", "", "modèle", "модель-7b", "\udcd0"]
    parts = [Store(tmp_path).folder(IDS[0], name).path.name.removesuffix(f"_{IDS[0]}") for name in names]
    assert len(set(parts)) == len(names)
    assert all(parts)
    assert parts[4:6] == ["modele", "7b"]


def test_a_renamed_folder_keeps_its_run(store: Store) -> None:
    renamed = store.find(IDS[0]).path.rename(store.root / f"mine_{IDS[0]}")
    assert store.folder(IDS[0], "toy", "model", "task").path == renamed


def test_a_full_disk_keeps_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / f"toy_{IDS[0]}")
    folder.path.mkdir()
    folder.journal(0).write_text("answers")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="no space left"):
        finish(folder)
    assert folder.journal(0).read_text() == "answers"
    assert not folder.finished


def test_a_run_without_its_record_is_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    folder = RunFolder(tmp_path)
    monkeypatch.setattr(RunFolder, "rewrite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        finish(folder)
    assert not folder.finished
