"""A run before its judges: its files, read once, and what a rule says of them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from harness.leaderboard.results import PACKED_SAMPLES, Result
from harness.results.compare import StoredRun
from harness.results.cost_lines import CostLine, costs_within
from harness.results.record import RunRecord
from harness.results.samples import SampleLine, key_of

SUBMISSION: Final = "submission.json"
STATES: Final = re.compile(r"state\.(json|safetensors)")
"""Files of what a trained method learned."""
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What a rule says of a result: an error keeps it out, a warning is for the reviewer."""

    folder: Path
    severity: Severity
    rule: str
    text: str


@dataclass(frozen=True)
class Case:
    """A result with its files read.

    Attributes:
        published: whether it lies among published results, where only what ``harness submit`` packs has a place.
        renewed: whether it was made by a version that keeps all that a check needs, as every new submission is.
    """

    result: Result
    manifest: Mapping[str, Any]
    samples: Sequence[SampleLine]
    costs: Sequence[CostLine]
    published: bool = False
    renewed: bool = False

    @property
    def record(self) -> Mapping[str, Any]:
        """The run's record."""
        return self.result.record

    @property
    def packed(self) -> bool:
        """Whether it is, or has to be, as ``harness submit`` packs it."""
        return self.published or is_packed(self.result.folder)

    @cached_property
    def stored(self) -> StoredRun:
        """The run as comparisons take it; documents go by the part of their digest that packing keeps."""
        by_key = {key_of(line): line for line in self.costs} or costs_within(self.samples)
        return StoredRun.of(RunRecord.model_validate(self.record), self.samples, by_key).packed


def is_packed(folder: Path) -> bool:
    """Whether a folder has a submission's name, or one of its files."""
    by_name = re.fullmatch(r"[0-9a-f]{12}", folder.name) is not None
    return by_name or any((folder / name).exists() for name in (SUBMISSION, PACKED_SAMPLES))


Rule = Callable[[Case], Iterator[str]]
