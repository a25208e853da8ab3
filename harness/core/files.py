"""Files that are either whole or not there, and what to say when the disk is full."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import DiskError


def parse_json(text: str | bytes) -> Any:
    """The value that a text is JSON of; bytes are read as UTF-8, whatever the locale.

    Raises:
        ValueError: it is not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write inside the ``with`` block into a sentence that names the place and the remedy.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"no space left while writing {path}. What was finished before is kept: "
                "free some space and give the same command again."
            ) from error
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def saving_tensors() -> Iterator[None]:
    """Have safetensors, which has an error of its own for a failed write, fail as any other file does.

    Raises:
        OSError: as the system gave it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code) if number else str(error)) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text or bytes so that a reader, or a crash, sees the old file or the new one and nothing in between.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _staging(path)
        try:
            with staging.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            staging.replace(path)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes its final name when the ``with`` block ends well, and vanishes otherwise.

    Its files can be read by whom the user's umask lets, also those that a library made for their owner alone.

    Raises:
        DiskError: the disk is full, or the place cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = _staging(path)
        staging.mkdir()
        try:
            yield staging
            allowed = staging.stat().st_mode & 0o666  # mkdir heeds the umask
            for file in staging.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(allowed)
            if path.exists():  # another process was quicker
                shutil.rmtree(staging)
            else:
                staging.replace(path)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _staging(path: Path) -> Path:
    """A hidden neighbour of the path that nobody else has; made by plain open so that the user's umask holds.

    Not by process number: in containers the next process has the number of the one that was killed.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
