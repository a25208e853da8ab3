"""A path counts by what lies behind it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.core.contents import digest_of, with_contents
from harness.core.errors import HarnessError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "deep" / "b.txt").write_text("b")
    return tmp_path / "data"


@pytest.mark.parametrize("written", ["{}", "{}/", "{}/deep/.."])
def test_a_path_is_its_contents(written: str, folder: Path) -> None:
    value = written.format(folder)
    before = with_contents({"tokenizer": value})
    assert before == {"tokenizer": digest_of(folder)}
    (folder / "deep" / "b.txt").write_text("changed")
    assert with_contents({"tokenizer": value}) != before


def test_a_path_inside_a_list_or_a_mapping_is_too(folder: Path) -> None:
    value = {"a": [{"b": str(folder)}], "c": folder / "a.txt"}
    assert with_contents(value) == {"a": [{"b": digest_of(folder)}], "c": digest_of(folder / "a.txt")}


def test_a_copy_is_the_same_and_hidden_files_do_not_count(folder: Path) -> None:
    copy = shutil.copytree(folder, folder.parent / "copy")
    (copy / ".lock").write_text("")
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "x.pyc").write_text("")
    assert digest_of(copy) == digest_of(folder)


@pytest.mark.parametrize("value", ["float16", 3, None, True, 0.5, "a/b", "~absent/x", "org/name", "x" * 5000, "/\0"])
def test_anything_else_is_itself(value: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert with_contents({"x": value}) == {"x": value}


def test_a_name_is_no_path_although_a_folder_is_called_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert with_contents({"x": "deep"}) == {"x": "deep"}


def test_a_path_that_cannot_be_read_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(HarnessError, match=r"data cannot be read: Permission denied"):
        with_contents({"tokenizer": str(folder)})
