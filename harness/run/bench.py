"""What the cost pass needs of a session, handed in, so that costs know nothing of sessions."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.progress import Progress
from harness.results.store import RunFolder
from harness.run.spec import RunSpec

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM


@dataclass(frozen=True)
class Bench:
    """A model to measure on.

    Attributes:
        load: the model, loaded when it is first asked for.
        attach: applies a run's methods to it for the length of a ``with`` block.
        folder: where a run's result is.
        progress: where it reports to.
    """

    load: "Callable[[], HarnessLM]"
    attach: Callable[[RunSpec], AbstractContextManager[object]]
    folder: Callable[[RunSpec], RunFolder]
    progress: Progress
