"""A packed run that is about to be tampered with, by somebody who knows how submissions are packed."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.leaderboard.generated import manifest_of

Json = dict[str, Any]
PACKED = {"record.json", "manifest.json", "samples.jsonl.gz", "costs.jsonl.gz", "state.json", "state.safetensors"}


class Submission:
    """A packed run: each change is signed with the digests that it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def edit(self, change: Callable[[Json], object], name: str = "record.json") -> None:
        """Change a JSON file, and the digests with it: the thief knows how submissions are packed."""
        content = json.loads((self.folder / name).read_text())
        change(content)
        (self.folder / name).write_text(json.dumps(content))
        self.sign()

    def edit_consistently(self, change: Callable[[Json], object]) -> None:
        """Change the record and make id, folder and manifest follow."""
        record = json.loads((self.folder / "record.json").read_text())
        change(record)
        manifest = manifest_of(record)
        record["id"] = manifest["id"]
        (self.folder / "record.json").write_text(json.dumps(record))
        (self.folder / "manifest.json").write_text(json.dumps(manifest))
        self.folder = self.folder.rename(self.folder.with_name(record["id"]))
        self.sign()

    def replace(self, text: str, name: str = "record.json") -> None:
        (self.folder / name).write_text(text)
        self.sign()

    def samples(self, change: Callable[[list[Json]], object], name: str = "samples") -> None:
        path = self.folder / f"{name}.jsonl.gz"
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        change(lines)
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
        self.sign()

    def sign(self, *more: str) -> None:
        """Write the digests anew, also of files that are no part of every packed run."""
        names = sorted({path.name for path in self.folder.iterdir() if path.is_file()} & {*PACKED, *more})
        digests = {name: hashlib.sha256((self.folder / name).read_bytes()).hexdigest() for name in names}
        (self.folder / "submission.json").write_text(json.dumps({"id": self.folder.name, "sha256": digests}))
