"""A file is whole or not there, whatever goes wrong, and a full disk is a sentence."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from harness.core.errors import DiskError
from harness.core.files import saving_tensors, staged_folder, write_atomic, writing


def failing(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_text_is_written_into_a_new_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "c.txt", "née\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "née\n".encode()


def test_text_replaces_text(tmp_path: Path) -> None:
    for text in ("a long one", "short"):
        write_atomic(tmp_path / "x", text)
    assert (tmp_path / "x").read_text() == "short"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_users_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_files_that_a_library_made_for_their_owner_alone_can_be_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "new") as staging:
            (staging / "below").mkdir()
            for name in ("a", "below/b"):
                (staging / name).touch(mode=0o600)
    finally:
        os.umask(before)
    assert [(tmp_path / "new" / name).stat().st_mode & 0o777 for name in ("a", "below/b")] == [0o640, 0o640]


@pytest.mark.parametrize(
    ("message", "number"),
    [("I/O error: No space left on device (os error 28)", errno.ENOSPC), ("header too large", errno.EIO)],
)
def test_a_failed_write_of_tensors_is_as_the_system_gave_it(message: str, number: int) -> None:
    with pytest.raises(OSError, match=r"space|large") as failed, saving_tensors():
        raise SafetensorError(message)
    assert failed.value.errno == number


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("old", ["old", None])
def test_a_full_disk_leaves_the_old_file_alone(
    step: str, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    if old:
        path.write_text(old)
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), failing(errno.ENOSPC))
    with pytest.raises(DiskError, match=r"no space left while writing .*x\. What was finished before is kept"):
        write_atomic(path, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing_behind(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(error):
        write_atomic(tmp_path / "x", "text")
    assert list(tmp_path.iterdir()) == []


def test_text_that_cannot_be_encoded_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomic(tmp_path / "x", "\ud800")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (errno.ENOSPC, "free some space and give the same command again"),
        (errno.EDQUOT, "free some space and give the same command again"),
        (errno.EACCES, "cannot write here: Permission denied"),
        (errno.EROFS, "cannot write here: Read-only file system"),
    ],
)
def test_a_failed_write_is_a_sentence(code: int, sentence: str) -> None:
    with pytest.raises(DiskError, match=sentence), writing(Path("here")):
        failing(code)()


def test_an_error_without_words_is_still_a_sentence() -> None:
    with pytest.raises(DiskError, match="cannot write here: nothing known"), writing(Path("here")):
        raise OSError("nothing known")


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(DiskError, match="cannot write"):
        write_atomic(tmp_path / "a" / "b", "text")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "new") as staging:
        (staging / "x").write_text("1")
        assert not (tmp_path / "a" / "new").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert (tmp_path / "a" / "new" / "x").read_text() == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_folder_vanishes(error: type[BaseException], tmp_path: Path) -> None:
    def write() -> None:
        with staged_folder(tmp_path / "new") as staging:
            (staging / "x").write_text("1")
            raise error

    with pytest.raises(error):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_on_a_full_disk_vanishes(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"no space left while writing .*new"), staged_folder(tmp_path / "new"):
        failing(errno.ENOSPC)()
    assert list(tmp_path.iterdir()) == []


def test_the_quicker_process_wins(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "new") as staging:
        (staging / "x").write_text("mine")
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "x").write_text("theirs")
    assert (tmp_path / "new" / "x").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # a killed process tidies nothing
        with pytest.raises(DiskError), staged_folder(tmp_path / "new"):
            failing(errno.ENOSPC)()
    with staged_folder(tmp_path / "new") as staging:
        (staging / "x").write_text("1")
    assert (tmp_path / "new" / "x").read_text() == "1"
