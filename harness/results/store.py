"""Results on disk: a folder of runs, each a folder of plain files that can be copied, diffed and mailed.

``record.json`` is the result, ``samples.jsonl`` has a line per document, ``manifest.json`` says what ran, and
``costs.jsonl`` what the documents cost, once that was measured. A run without a record is unfinished; its
``journal*.jsonl`` holds the answers so far, and its ``failure.json`` says why it failed, if it did. A packed run, as
``harness submit`` makes it, is a folder of its id alone in which the lines are compressed; it is read like any other,
and never changed.
"""

import gzip
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from harness.core.errors import StoreError, UnknownNameError
from harness.core.files import parse_json, write_atomic, writing
from harness.results.cost_lines import COST_LINE, CostLine, CostLines
from harness.results.failure import FAILURE, clear_failure
from harness.results.record import RunRecord
from harness.results.samples import SAMPLE_LINE, SampleLine, key_of

RECORD, SAMPLES, COSTS, MANIFEST = "record.json", "samples.jsonl", "costs.jsonl", "manifest.json"
_Line = TypeVar("_Line")
_FOLDER: Final = re.compile(r"(?:.*_)?([0-9a-f]{12})")
"""The name of a run's folder: what people read, and its id."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, finished or not."""

    path: Path

    @property
    def id(self) -> str:
        """The id that the folder's name ends in."""
        return self.path.name.rpartition("_")[2]

    @property
    def finished(self) -> bool:
        """Whether the run's record is there."""
        return (self.path / RECORD).is_file()

    @property
    def is_run(self) -> bool:
        """Whether anything of a run is there: its record, its answers so far, or nothing yet."""
        names = [path.name for path in self.path.iterdir()]
        return not names or any(name in (RECORD, FAILURE) or name.startswith("journal") for name in names)

    @property
    def busy(self) -> bool:
        """Whether a process is at this run, or at a part of it."""
        return any(is_locked(lock.with_suffix("")) for lock in self.path.glob("journal*.jsonl.lock"))

    @property
    def packed(self) -> bool:
        """Whether it is a packed run, which nothing changes."""
        return (self.path / f"{SAMPLES}.gz").is_file()

    def journal(self, rank: int) -> Path:
        """Where a process of the run keeps its finished batches."""
        return self.path / ("journal.jsonl" if rank == 0 else f"journal.rank{rank}.jsonl")

    @property
    def shards(self) -> list[Path]:
        """The journals of parts of the run that were evaluated apart."""
        return sorted(self.path.glob("journal.shard*.jsonl"))

    def record(self) -> RunRecord:
        """The run's record, checked against the schema.

        Raises:
            StoreError: there is none, or it is not a record of this schema.
        """
        path = self.path / RECORD
        try:
            return RunRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise StoreError(f"{self.path} holds no finished run (no {RECORD})") from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise StoreError(f"{path} is not a run record: {_problem(error)}") from error

    def samples(self) -> Iterator[SampleLine]:
        """The run's documents, one by one.

        Raises:
            StoreError: missing, or a line that is not a document's.
        """
        return _lines(self.path / SAMPLES, SAMPLE_LINE)

    def costs(self) -> CostLines:
        """What the documents cost, by document; empty if the run has no such file.

        Raises:
            StoreError: a line that is not one of costs.
        """
        path = self.path / COSTS
        present = path.exists() or path.with_name(f"{COSTS}.gz").exists()
        return {key_of(line): line for line in _lines(path, COST_LINE)} if present else {}

    def manifest(self) -> dict[str, Any]:
        """How the run was made.

        Raises:
            StoreError: missing or not a JSON object.
        """
        path = self.path / MANIFEST
        try:
            manifest = parse_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise StoreError(f"{path} is not a JSON object")
        return manifest

    def finish(
        self,
        record: RunRecord,
        samples: Iterable[SampleLine],
        manifest: dict[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Write the three files, the record last: with it the run is finished, and the journal goes.

        Args:
            files: what is kept beside them, by name: the files of methods that are not installed.

        Costs of the run as it was computed before go too.

        Raises:
            DiskError: no space; the journal is kept, so that the same command ends the run.
        """
        _write_lines(self.path / SAMPLES, samples)
        write_atomic(self.path / MANIFEST, json.dumps(manifest, indent=2, default=str) + "\n")
        (self.path / COSTS).unlink(missing_ok=True)
        for name, content in (files or {}).items():
            write_atomic(self.path / name, content)
        self.rewrite(record)
        self.clear_journals()
        clear_failure(self.path)

    def clear_journals(self) -> None:
        """Remove the answers of a run that is finished, and the locks on them."""
        for path in self.path.glob("journal*.jsonl*"):
            path.unlink(missing_ok=True)

    def write_costs(self, lines: Iterable[CostLine]) -> None:
        """Write what the documents cost, in the place of older lines."""
        _write_lines(self.path / COSTS, lines)

    def rewrite(self, record: RunRecord) -> None:
        """Put the record in the place of an older one."""
        write_atomic(self.path / RECORD, record.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True)
class Store:
    """A folder of runs."""

    root: Path

    def check_writable(self) -> None:
        """Find out before hours of work whether their result can be written.

        Raises:
            DiskError: it cannot.
        """
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.root):
                pass

    def folder(self, run_id: str, *names: str) -> RunFolder:
        """The folder of a run, named for people and ending in the id."""
        named = self.root / "_".join([*map(_readable, names), run_id])
        if names and named.is_dir():  # a folder of many runs takes long to search
            return RunFolder(named)
        existing = next(self.root.glob(f"*_{run_id}"), None) if self.root.is_dir() else None
        if existing is None and (packed := RunFolder(self.root / run_id)).finished:
            return packed
        return RunFolder(existing or named)

    def set_aside(self, folder: RunFolder) -> Path:
        """Move a run that cannot be read out of the way, to a name that is no run's; where it is then.

        Raises:
            DiskError: it cannot be moved.
        """
        number = 1
        while (path := folder.path.with_name(f"{folder.path.name}.damaged-{number}")).exists():
            number += 1
        with writing(folder.path):
            folder.path.rename(path)
        return path

    def folders(self) -> list[RunFolder]:
        """All runs, finished or not, the newest first."""
        if not self.root.is_dir():
            return []
        paths = [path for path in self.root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]
        folders = [RunFolder(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)]
        return [folder for folder in folders if "_" in folder.path.name or folder.finished]

    def find(self, name: str) -> RunFolder:
        """A run by folder, by id, by the beginning of its id, or by the name that its user gave it.

        Raises:
            StoreError: no such run, several, or a folder that is no run.
        """
        path = Path(name)
        if name and (path.is_dir() or path.is_file()):
            return RunFolder(path if path.is_dir() else path.parent)
        folders = self.folders()
        ids = {folder.id: folder for folder in folders}
        matches = [folder for run_id, folder in ids.items() if run_id.startswith(name)] if name else []
        matches = matches or [folder for folder in folders if folder.path.name == name]
        matches = matches or [folder for folder in folders if name and _called(folder) == name]
        if len(matches) > 1:
            raise StoreError(f"{name!r} fits {len(matches)} runs in {self.root}: give more of the id")
        if not matches:
            raise UnknownNameError("run", name, ids, see=f"`harness ls runs` lists those in {self.root}.")
        return matches[0]


def is_locked(journal: Path) -> bool:
    """Whether a process is at a journal: it has the lock, which ends with it, however it ends."""
    lock = journal.with_name(f"{journal.name}.lock")
    if not lock.is_file():
        return False
    try:
        with FileLock(lock).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False


def _called(folder: RunFolder) -> str | None:
    """What the user calls a run; None where it has no name, or cannot be read."""
    try:
        return folder.record().name if folder.finished else None
    except StoreError:
        return None


def _readable(name: str) -> str:
    """A name as part of a folder's, in letters that every file system takes; a name without any is its digest."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    part = re.sub(r"[^\w.=-]+", "-", plain, flags=re.ASCII).strip("-.")[:60]
    return part or hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]


def _lines(path: Path, kind: TypeAdapter[_Line]) -> Iterator[_Line]:
    """The lines of a file, packed or not, each checked as it is parsed."""
    packed = path.with_name(f"{path.name}.gz")
    if packed.is_file():
        path = packed
    try:
        with gzip.open(path) if path is packed else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield kind.validate_json(line)
                except ValidationError as error:
                    raise StoreError(f"{path} cannot be read: line {number}: {_problem(error)}") from error
    except (EOFError, zlib.error) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def _problem(error: ValidationError) -> str:
    """The first of what is wrong, with where it is."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the document"
    return f"{where}: {problem['msg']}"


def _write_lines(path: Path, lines: Iterable[SampleLine | CostLine]) -> None:
    write_atomic(path, "".join(f"{_line(line)}\n" for line in lines))


def _line(line: SampleLine | CostLine) -> str:
    """One line of JSON; infinities and NaN, which JSON does not have, become null."""
    try:
        return json.dumps(line, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        loose = json.dumps(line, ensure_ascii=False, default=_plain)
        return json.dumps(json.loads(loose, parse_constant=lambda _: None), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A numpy or torch value as the numbers in it; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
