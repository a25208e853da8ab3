"""The documents of a task in two parts that share none: one to choose on, one to report on."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.core.errors import SpecError
from harness.evaluate.tasks import LoadedTask

LEAST: Final = 2
"""Documents without which nothing is compared."""
_NAMES: Final = ("id", "idx", "index", "ind")
"""How fields end that name a document and are no part of it."""
Samples = dict[str, list[int]]
"""By task, indices of documents."""


@dataclass(frozen=True)
class Dealt:
    """A task's documents, dealt out."""

    validation: Samples
    test: Samples

    @property
    def counts(self) -> tuple[int, int]:
        """How many there are to choose on, and to report on."""
        return sum(map(len, self.validation.values())), sum(map(len, self.test.values()))


def dealt(task: LoadedTask, share: float, limit: float | None, seed: int) -> Dealt:
    """Deal out the documents of each task that a name stands for; documents of the same contents go together.

    Args:
        share: to choose on: of each task so many documents, or such a share of them below 1; at most half.
        limit: of each task the first so many, or such a share, as lm-eval reads it; None for all.

    Raises:
        SpecError: too few documents for two parts.
    """
    validation, test = Samples(), Samples()
    for name, each in sorted(task.tasks.items()):
        copies: dict[str, list[int]] = {}
        for index, document in enumerate(task.documents(each, limit, None)):
            copies.setdefault(_contents(document), []).append(index)
        groups = list(copies.values())
        count = sum(map(len, groups))
        wanted = min(int(share) if share >= 1 else round(share * count), count // 2)
        random.Random(f"{seed} {name}").shuffle(groups)
        chosen = list[int]()
        while groups and len(chosen) + len(groups[-1]) <= wanted:
            chosen += groups.pop()
        rest = [index for group in groups for index in group]
        if min(len(chosen), len(rest)) < LEAST:
            raise SpecError(
                f"{name}: {count} documents, of which {len(chosen)} would be to choose on: each part needs {LEAST}; "
                "give a larger --limit or --validation"
            )
        validation[name], test[name] = sorted(chosen), sorted(rest)
    return Dealt(validation, test)


def _contents(document: Any) -> str:
    """A document as text, without what only names it."""
    if isinstance(document, Mapping):
        document = {key: value for key, value in document.items() if not _is_name(str(key).lower())}
    return json.dumps(document, sort_keys=True, default=str)


def _is_name(key: str) -> bool:
    return key in _NAMES or key.endswith(tuple(f"_{name}" for name in _NAMES))
