"""Checkpoints that are read as floats: made once, kept in the user's cache by their contents."""

import hashlib
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Final

from harness.core.files import parse_json, staged_folder, writing
from harness.core.paths import cache_folder
from harness.core.rounding import Rounding

Say = Callable[[str], None]
"""Tells the user something."""
_ROUNDING: Final = "rounding.json"


def place_of(fingerprint: str) -> Path:
    """Where the converted checkpoint of that fingerprint is kept, or will be."""
    key = hashlib.sha256(f"{fingerprint} transformers {version('transformers')}".encode()).hexdigest()
    return cache_folder() / "models" / key[:16]


def made_once(folder: Path, make: Callable[[Path], Rounding | None]) -> Rounding | None:
    """Make a converted checkpoint unless it is there; processes wait for each other.

    Args:
        make: writes the model into an empty folder; gives how its weights were rounded.

    Raises:
        DiskError: the cache has no room, or cannot be written; and whatever ``make`` raises.
    """
    from filelock import FileLock

    lock = folder.parent / ".locks" / f"{folder.name}.lock"
    with ExitStack() as held:
        with writing(folder):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(lock))
        if not _is_whole(folder):
            for left in (folder, *folder.parent.glob(f".{folder.name}.*")):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with staged_folder(folder) as staging:
                rounding = make(staging)
                (staging / _ROUNDING).write_text("null" if rounding is None else rounding.model_dump_json())
    kept = parse_json((folder / _ROUNDING).read_bytes())
    return kept and Rounding.model_validate(kept)


def _is_whole(folder: Path) -> bool:
    """Whether a converted checkpoint is there, and no file of it was lost or emptied since."""
    files = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    return (
        {_ROUNDING, "config.json"} <= {path.name for path in files}
        and any(path.suffix == ".safetensors" for path in files)
        and all(path.stat().st_size for path in files)
    )
