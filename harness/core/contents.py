"""What lies behind a path, as a digest: the same contents anywhere are the same, whatever the path is called."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError


def digest_of(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder that are not hidden.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not path.is_dir():
        return digest_of_files(path.parent, [path])
    files = (file for file in path.rglob("*") if file.is_file())
    return digest_of_files(path, (file for file in files if not _hidden(file.relative_to(path))))


def digest_of_files(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of the names, relative to the folder, and contents of files in any order."""
    digest = hashlib.sha256()
    for name, path in sorted((file.relative_to(folder).as_posix(), file) for file in files):
        with path.open("rb") as file:
            digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def with_contents(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they identify a result: a path by what lies behind it, everything else as it is.

    A text is a path where it is written as one, with a separator or a leading dot or tilde, and is there.

    Raises:
        HarnessError: a path that is there cannot be read.
    """
    return {name: _identified(value) for name, value in values.items()}


def _identified(value: Any) -> Any:
    if isinstance(value, Mapping):
        return with_contents(value)
    if isinstance(value, list | tuple):
        return [_identified(part) for part in value]
    written = isinstance(value, str) and (os.sep in value or value.startswith((".", "~"))) and len(value) < 4096
    if not (written or isinstance(value, Path)) or "\0" in str(value):
        return value
    path = Path(os.path.expanduser(value))  # noqa: PTH111 - Path's own raises for a user that is not there
    try:
        return digest_of(path) if path.exists() else str(value)
    except OSError as error:
        raise HarnessError(f"{value} cannot be read: {error.strerror or error}") from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)
