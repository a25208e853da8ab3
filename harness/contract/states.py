"""Prepared states on this machine: a folder and a lock for each, and a quota for all."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from harness.contract.prepared import FACTS
from harness.core.errors import HarnessError
from harness.core.files import parse_json, writing
from harness.core.paths import cache_folder

QUOTA: Final = 10_000_000_000
"""Bytes that all states may take, unless HARNESS_STATE_QUOTA says otherwise."""
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class State:
    """A state as it lies on disk.

    Attributes:
        label: the method as it is written on the command line; the folder's name where the state does not tell.
        size: bytes.
        used: when it was last made or read, in seconds since the epoch.
    """

    folder: Path
    label: str
    size: int
    used: float


@dataclass(frozen=True)
class States:
    """The cache of prepared states.

    Attributes:
        quota: bytes that they may take together.
    """

    root: Path
    quota: int = QUOTA

    @classmethod
    def of_user(cls) -> "States":
        """The user's own.

        Raises:
            HarnessError: HARNESS_STATE_QUOTA is no size.
        """
        return cls(cache_folder() / "prepared", _quota(os.environ.get("HARNESS_STATE_QUOTA")))

    def folder(self, name: str, key: dict[str, Any]) -> Path:
        """Where the state of that key lies, or would."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.root / f"{name}-{digest[:16]}"

    @contextmanager
    def locked(self, folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
        """Keep other processes from making, reading or clearing this state; wait for one that does, once it is said.

        Raises:
            DiskError: the cache cannot be written.
        """
        lock = self._lock(folder)
        with writing(folder):
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def all(self) -> list[State]:
        """Every state, the one that was used last first."""
        folders = [path for path in self.root.glob("[!.]*") if path.is_dir()]
        return sorted(map(_described, folders), key=lambda state: state.used, reverse=True)

    def clear(self, keep: Path) -> list[State]:
        """Remove the states that were used longest ago until all fit the quota, but never one that is in use.

        Args:
            keep: the state that has just been made.

        Returns:
            those that went.
        """
        states, gone = self.all(), []
        total = sum(state.size for state in states)
        for state in reversed(states):
            if total <= self.quota:
                break
            if state.folder == keep or not self._removed(state.folder):
                continue
            total -= state.size
            gone.append(state)
        return gone

    def _removed(self, folder: Path) -> bool:
        lock = self._lock(folder)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        try:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            lock.release()
        return not folder.exists()

    def _lock(self, folder: Path) -> FileLock:
        return FileLock(self.root / ".locks" / f"{folder.name}.lock")


def _described(folder: Path) -> State:
    label, used, size = folder.name, 0.0, 0
    with suppress(OSError):  # another process may be clearing it
        used = folder.stat().st_mtime
        size = sum(file.stat().st_size for file in folder.iterdir())
    with suppress(OSError, ValueError, AttributeError):
        label = str(parse_json((folder / FACTS).read_bytes()).get("label", label))
    return State(folder, label, size, used)


def _quota(text: str | None) -> int:
    if text is None:
        return QUOTA
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if size is None:
        raise HarnessError(f"HARNESS_STATE_QUOTA={text}: expected a size, such as 500MB or 20GB")
    return int(float(size[1]) * _UNITS[size[2]])
