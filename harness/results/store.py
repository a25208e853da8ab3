"""Results on disk: a folder of runs, each a folder of three plain files that can be copied, diffed and mailed.

``record.json`` is the result, ``samples.jsonl`` has a line per document, ``manifest.json`` says what ran. A run
without a record is unfinished; its ``journal*.jsonl`` holds the answers so far.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from pydantic import ValidationError

from harness.core.errors import StoreError, UnknownNameError
from harness.core.files import write_atomic, writing
from harness.results.record import RunRecord

RECORD, SAMPLES, MANIFEST = "record.json", "samples.jsonl", "manifest.json"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, finished or not."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the run's record is there."""
        return (self.path / RECORD).is_file()

    def journal(self, rank: int) -> Path:
        """Where a process of the run keeps its finished batches."""
        return self.path / ("journal.jsonl" if rank == 0 else f"journal.rank{rank}.jsonl")

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
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the document"
            raise StoreError(f"{path} is not a run record: {where}: {problem['msg']}") from error

    def samples(self) -> Iterator[dict[str, Any]]:
        """The run's documents, one by one.

        Raises:
            StoreError: missing or not JSON lines.
        """
        path = self.path / SAMPLES
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}") from error

    def finish(self, record: RunRecord, samples: Iterable[dict[str, Any]], manifest: dict[str, Any]) -> None:
        """Write the three files, the record last: with it the run is finished, and the journal goes.

        Raises:
            DiskError: no space; the journal is kept, so that the same command ends the run.
        """
        self.write_samples(samples)
        write_atomic(self.path / MANIFEST, json.dumps(manifest, indent=2, default=str) + "\n")
        self.rewrite(record)
        for path in self.path.glob("journal*.jsonl*"):
            path.unlink(missing_ok=True)

    def write_samples(self, samples: Iterable[dict[str, Any]]) -> None:
        """Write the documents' lines, in the place of older ones."""
        write_atomic(self.path / SAMPLES, "".join(f"{_line(sample)}\n" for sample in samples))

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
        existing = next(self.root.glob(f"*_{run_id}"), None) if self.root.is_dir() else None
        readable = "_".join(re.sub(r"[^\w.=-]+", "-", name, flags=re.ASCII).strip("-.")[:60] for name in names)
        return RunFolder(existing or self.root / f"{readable}_{run_id}")

    def folders(self) -> list[RunFolder]:
        """All runs, finished or not, the newest first."""
        if not self.root.is_dir():
            return []
        found = [path for path in self.root.iterdir() if re.search(r"_[0-9a-f]{12}$", path.name) and path.is_dir()]
        return [RunFolder(path) for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]

    def find(self, name: str) -> RunFolder:
        """A run by folder, by id, or by the beginning of its id.

        Raises:
            StoreError: no such run, several, or a folder that is no run.
        """
        path = Path(name)
        if name and (path.is_dir() or path.is_file()):
            return RunFolder(path if path.is_dir() else path.parent)
        folders = self.folders()
        ids = {folder.path.name.rpartition("_")[2]: folder for folder in folders}
        matches = [folder for run_id, folder in ids.items() if run_id.startswith(name)] if name else []
        matches = matches or [folder for folder in folders if folder.path.name == name]
        if len(matches) > 1:
            raise StoreError(f"{name!r} fits {len(matches)} runs in {self.root}: give more of the id")
        if not matches:
            raise UnknownNameError("run", name, ids, see=f"`harness ls runs` lists those in {self.root}.")
        return matches[0]


def _line(sample: dict[str, Any]) -> str:
    """One line of JSON; infinities and NaN, which JSON does not have, become null."""
    try:
        return json.dumps(sample, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        loose = json.dumps(sample, ensure_ascii=False, default=_plain)
        return json.dumps(json.loads(loose, parse_constant=lambda _: None), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """A numpy or torch value as the numbers in it; anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
