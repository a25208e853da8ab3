"""How the requests of a task are scored: in lm-eval's own forwards, or context first."""

from dataclasses import dataclass
from typing import Literal

ScoreMode = Literal["lm-eval", "context-first"]
"""By lm-eval, a text is scored in one forward; context first, its context is read into a cache before."""
Suffix = int | str
"""What of a context's end is held back: so many tokens, or the text from its last occurrence on."""


@dataclass(frozen=True)
class ContextFirst:
    """The settings of the second mode.

    Attributes:
        suffix: the end of the context that is read with the continuation; None: its last token.
    """

    suffix: Suffix | None = None
