"""Data sets and models of the caches as one file, to be carried to a machine without a network.

An archive is a ``.tar.gz`` of plain files under three roots, ``datasets/`` for prepared Arrow folders, ``hub/`` for
snapshots of models and ``gguf/`` for models that have a short name here. There is no link, no code and no pickle in it,
and whatever is not of these shapes is refused.
"""

import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.core.errors import ArchiveError
from harness.core.files import staged_folder, write_atomic, writing
from harness.core.paths import cache_folder
from harness.evaluate.availability import datasets_cache

# The folder that is packed as a whole, then the files in it.
_DATA_SET = re.compile(r"(datasets/[^/]+/[^/]+/[\w.]+/[0-9a-f]+)/([^/]+\.arrow|dataset_info\.json)")
_MODEL = re.compile(r"(hub/models--[\w.-]+/snapshots/[0-9a-f]{40})/(.+\.(?:json|safetensors|model|txt|jinja|tiktoken))")
_GGUF = re.compile(r"(gguf/[0-9a-f]{16})/([\w.-]+\.gguf)")


def pack(folders: Iterable[Path], target: Path) -> None:
    """Write prepared data sets and model snapshots into one file, whole or not at all.

    Raises:
        ArchiveError: a folder that is in none of the caches.
        DiskError: the file cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            # level 1: tensors hardly shrink; dereference: the hub cache links to its blobs, an archive holds files
            with tarfile.open(staging, "w:gz", compresslevel=1, dereference=True) as tar:
                for folder in dict.fromkeys(folders):
                    for file, name in _files(folder):
                        tar.add(file, name, recursive=False, filter=_anonymous)
            staging.replace(target)
        finally:
            staging.unlink(missing_ok=True)


def unpack(source: Path) -> dict[str, bool]:
    """Put an archive's folders into this machine's caches; folders that exist already stay as they are.

    Returns:
        The folders by their name in the archive, and whether each is new here.

    Raises:
        ArchiveError: not an archive of ``harness fetch --pack``, or damaged.
        DiskError: the caches cannot be written.
    """
    try:
        with tarfile.open(source, "r:gz") as tar:
            return {unit: _put(tar, unit, files) for unit, files in _checked(source, tar).items()}
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArchiveError(f"{source} cannot be read as an archive: {reason}") from error


_Files = dict[str, tarfile.TarInfo]


def _checked(source: Path, tar: tarfile.TarFile) -> dict[str, _Files]:
    """The files of every folder, by their names in it; all are looked at before the first is unpacked."""
    checked: dict[str, _Files] = {}
    for member in tar.getmembers():
        match = _shape(member.name)
        aside = {"", ".", ".."} & set(member.name.split("/")) or "\\" in member.name
        if not match or aside or not member.isreg():
            raise ArchiveError(f"{source} is not an archive of `harness fetch --pack`: it holds {member.name!r}")
        checked.setdefault(match[1], {})[match[2]] = member
    if not checked:
        raise ArchiveError(f"{source} is not an archive of `harness fetch --pack`: it is empty")
    return checked


def _put(tar: tarfile.TarFile, unit: str, files: _Files) -> bool:
    """Unpack one folder into its cache, unless it exists."""
    folder = _place(unit)
    if folder.exists():
        return False
    with staged_folder(folder) as staging:
        for name, member in files.items():
            tar.extract(member.replace(name=name, deep=False), staging, filter="data")
    if folder.parent.name == "snapshots":  # what the hub's library looks up when no revision is given
        write_atomic(folder.parent.parent / "refs" / "main", folder.name)
    return True


def _place(unit: str) -> Path:
    root, _, path = unit.partition("/")
    return _roots()[root] / path


def _roots() -> dict[str, Path]:
    """The caches by what their folders are below in an archive."""
    from huggingface_hub import constants

    return {"datasets": datasets_cache(), "hub": Path(constants.HF_HUB_CACHE), "gguf": cache_folder() / "gguf"}


def _shape(name: str) -> re.Match[str] | None:
    """The folder and the file that a name in an archive is of; None where it is no such name."""
    return _DATA_SET.fullmatch(name) or _MODEL.fullmatch(name) or _GGUF.fullmatch(name)


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """A folder's files that belong into an archive, each with its name in the archive."""
    for root, cache in _roots().items():
        if folder.is_relative_to(cache):
            for file in sorted(folder.rglob("*")):
                name = f"{root}/{file.relative_to(cache).as_posix()}"
                if _shape(name) and file.is_file() and not file.name.startswith("cache-"):  # cache-: made by map()
                    yield file, name
            return
    raise ArchiveError(f"{folder} is in none of the caches and cannot be packed")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the name of the user who packed it."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
