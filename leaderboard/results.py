"""Reading results from anybody: bounded in size and depth, checked against the schema, never executed.

A result is a folder with ``record.json``, ``manifest.json`` and the documents in ``samples.jsonl`` (as a run leaves
them) or ``samples.jsonl.gz`` (as a submission packs them), with what they cost in ``costs.jsonl`` likewise.
"""

import gzip
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.core.errors import ResultError
from harness.leaderboard.strict_json import decode
from harness.results.cost_lines import COST_LINE, CostLine
from harness.results.record import RunRecord
from harness.results.samples import SAMPLE_LINE, SampleLine
from harness.results.store import COSTS, MANIFEST, RECORD, SAMPLES

MAX_RECORD, MAX_MANIFEST, MAX_SAMPLES = 1 << 20, 4 << 20, 256 << 20  # bytes, unpacked
MAX_LINES = 200_000
PACKED_SAMPLES, PACKED_COSTS = f"{SAMPLES}.gz", f"{COSTS}.gz"
_Line = TypeVar("_Line")


@dataclass(frozen=True)
class Result:
    """One run, read and checked; its documents are read when asked for."""

    folder: Path
    record: Mapping[str, Any]

    def manifest(self) -> dict[str, Any]:
        """How the run was made.

        Raises:
            ResultError: absent, too large, or not a JSON object.
        """
        manifest = decode(plain_file(self.folder / MANIFEST, MAX_MANIFEST), MANIFEST)
        if not isinstance(manifest, dict):
            raise ResultError(f"{MANIFEST} is not a JSON object")
        return manifest

    def samples(self) -> Iterator[SampleLine]:
        """The run's documents, one by one.

        Raises:
            ResultError: absent, too large, or a line is not a document's.
        """
        return _typed(self.folder, SAMPLES, SAMPLE_LINE)

    def costs(self) -> Iterator[CostLine]:
        """What the documents cost, one by one; nothing where the run has no such file, as older ones.

        Raises:
            ResultError: too large, or a line is not one of costs.
        """
        present = any((self.folder / name).exists() for name in (COSTS, PACKED_COSTS))
        return _typed(self.folder, COSTS, COST_LINE) if present else iter(())


def load(folder: Path) -> Result:
    """Read a result and check its record.

    Raises:
        ResultError: absent, too large, of another schema, or with a value that is not a number.
    """
    text = plain_file(folder / RECORD, MAX_RECORD)
    data = decode(text, RECORD)
    version = data.get("schema_version") if isinstance(data, dict) else None
    known = RunRecord.model_fields["schema_version"].default
    if isinstance(version, int) and version != known:
        raise ResultError(f"{RECORD} has schema version {version}; this harness reads version {known}")
    try:
        record = RunRecord.model_validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "the document"
        raise ResultError(f"{RECORD}: {where}: {problem['msg']}") from error
    return Result(folder, record.model_dump(mode="json"))


def load_all(root: Path) -> tuple[list[Result], dict[Path, str]]:
    """Every result under a folder, the newest first, and why others cannot be shown.

    Raises:
        ResultError: no such folder.
    """
    if not root.is_dir():
        raise ResultError(f"no folder {root}; `harness run -o {root} ...` or `harness submit` makes one")
    by_id: dict[str, Result] = {}
    refused: dict[Path, str] = {}
    for folder in _folders(root):
        try:
            result = load(folder)
        except ResultError as error:
            refused[folder] = str(error)
            continue
        run_id = result.record["id"]
        if run_id in by_id:
            refused[folder] = f"run {run_id} is listed twice, also in {by_id[run_id].folder}"
        else:
            by_id[run_id] = result
    results = sorted(by_id.values(), key=lambda result: (result.record["started"], result.record["id"]), reverse=True)
    return results, refused


def _folders(root: Path) -> Iterator[Path]:
    """Folders with a record, in the order of their names; links are not followed."""
    for where, folders, files in os.walk(root):
        folders.sort()
        if RECORD in files:
            yield Path(where)


def plain_file(path: Path, limit: int) -> bytes:
    """The contents of a file.

    Raises:
        ResultError: it is not there, a link, too large, or cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        raise ResultError(f"no {path.name}")
    try:
        size = path.stat().st_size
        if size > limit:
            raise ResultError(f"{path.name} has {size:,} bytes; at most {limit:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path.name} cannot be read: {error.strerror}") from error


def _typed(folder: Path, name: str, kind: TypeAdapter[_Line]) -> Iterator[_Line]:
    """The lines of a file, each checked to be of its kind."""
    for number, line in enumerate(_lines(folder, name), 1):
        place = f"line {number} of {name}"
        try:
            decode(line, place)
            yield kind.validate_json(line, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"]) or "the line"
            raise ResultError(f"{place}: {where}: {problem['msg']}") from error


def _lines(folder: Path, name: str) -> Iterator[bytes]:
    """Lines of a file of documents, packed or not, up to the limits on their number and size."""
    packed = folder / f"{name}.gz"
    path = packed if packed.is_file() else folder / name
    if path.is_symlink() or not path.is_file():
        raise ResultError(f"no {name}")
    size = 0
    try:
        with gzip.open(path) if path is packed else path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_RECORD):
                number, size = number + 1, size + len(line)
                if number > MAX_LINES or size > MAX_SAMPLES or len(line) == MAX_RECORD:
                    raise ResultError(f"{path.name} is too large: at most {MAX_LINES:,} lines of {MAX_RECORD:,} bytes")
                yield line
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise ResultError(f"{path.name} cannot be read: {error}") from error
