"""How long a run will take, by the records of runs like it on the same device."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Self

from harness.core.files import parse_json
from harness.results.store import RECORD, RunFolder
from harness.run.spec import RunSpec

_Like = tuple[str | int, ...]


@dataclass
class Pace:
    """Seconds that a document took in earlier runs: of the same method, model and task, else of any method."""

    _seconds: dict[_Like, list[float]] = field(default_factory=lambda: defaultdict(list))
    _documents: dict[str, int] = field(default_factory=dict, init=False)

    @classmethod
    def read(cls, folders: Iterable[RunFolder]) -> Self:
        """The pace of finished runs; a record that cannot be read tells nothing."""
        pace = cls()
        for folder in folders:
            try:
                record = parse_json((folder.path / RECORD).read_bytes())
                model, evaluation, method = record["model"], record["evaluation"], record["method"]
                dense = (model.get("base") or model)["fingerprint"]
                like = (record["environment"]["device_name"], dense, evaluation["task"], evaluation["batch_size"])
                each = record["duration_s"] / max(score["n"] for score in record["scores"])
            except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
                continue
            pace._seconds[like].append(each)
            pace._seconds[*like, method["label"]].append(each)
        return pace

    def of(self, spec: RunSpec) -> float | None:
        """Seconds of a run; None where no run was like it."""
        like = (spec.environment.device_name, spec.model.fingerprint, spec.task.name, spec.job.batch_size)
        seconds = self._seconds.get((*like, spec.stack.label)) or self._seconds.get(like)
        return median(seconds) * self._count(spec) if seconds else None

    def _count(self, spec: RunSpec) -> int:
        """Documents of the run's task, the same for all runs of a sweep."""
        task, job = spec.task, spec.job
        if task.name not in self._documents:
            self._documents[task.name] = sum(
                1 for each in task.tasks.values() for _ in task.documents(each, job.limit, job.samples)
            )
        return self._documents[task.name]
