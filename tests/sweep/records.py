"""What of a run must not depend on who made it, and how often it was stopped."""

from typing import Any

from harness.results.store import RunFolder

_APART = ("environment", "command", "git")


def timeless(folder: RunFolder) -> dict[str, Any]:
    """All of a run but when, on what machine and from what checkout it was made, and how long it took."""
    record = folder.record().model_dump(exclude={"started", "duration_s", "environment"})
    manifest = {name: value for name, value in folder.manifest().items() if name not in _APART}
    return record | {"samples": (folder.path / "samples.jsonl").read_bytes(), "manifest": manifest}
