"""What the finished parts of a search gave, in a file whose name says what they depend on; JSON, never a pickle."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contract.identity import model_identity
from harness.core.files import parse_json, write_atomic

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


class Journal:
    """Results by name; another model, another setting or other questions have a file of their own."""

    def __init__(
        self, folder: Path | None, kind: str, model: "Decoder", questions: Sequence[str], settings: Sequence[Any]
    ) -> None:
        depends = [model_identity(model), *settings, list(questions)]
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        self._file = None if folder is None else folder / f"{kind}-{digest[:16]}.json"

    def read(self) -> dict[str, Any]:
        """The stored results; none where they cannot be read."""
        if self._file is None or not self._file.is_file():
            return {}
        try:
            stored = parse_json(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if isinstance(stored, dict) else {}

    def write(self, results: dict[str, Any]) -> None:
        """Store all results so far."""
        if self._file is not None:
            write_atomic(self._file, json.dumps(results))
