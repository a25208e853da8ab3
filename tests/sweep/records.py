"""What of a run must not depend on who made it, and how often it was stopped."""

from typing import Any

from harness.results.store import RunFolder


def timeless(folder: RunFolder) -> dict[str, Any]:
    """All of a run but when and on what machine it was made, and how long it took."""
    record = folder.record().model_dump(exclude={"started", "duration_s", "environment"})
    manifest = {name: value for name, value in folder.manifest().items() if name not in ("environment", "command")}
    return record | {"samples": (folder.path / "samples.jsonl").read_bytes(), "manifest": manifest}
