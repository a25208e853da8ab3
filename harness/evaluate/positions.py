"""Tasks about long contexts, which are read whole or not at all.

lm-eval cuts what is longer than the model takes, from the left. A task whose metadata states the length of its
documents (``tokens``) would then be another one, so it is refused where the model has fewer positions.
"""

from collections.abc import Mapping
from typing import Any

from harness.core.errors import TaskError


def stated_tokens(metadata: Any) -> int:
    """Tokens of a task's documents, answers included, as its metadata states them; 0 where it does not."""
    tokens = metadata.get("tokens") if isinstance(metadata, Mapping) else None
    return tokens if isinstance(tokens, int) else 0


def positions(config: Any, max_length: Any = None) -> int | None:
    """Positions that a model has by its configuration, or fewer where ``max_length`` is given; None if nothing says."""
    known = (getattr(config, "max_position_embeddings", None), max_length)
    return min((each for each in known if isinstance(each, int) and each > 0), default=None)


def refuse_longer(what: str, tokens: int, room: int | None) -> None:
    """Refuse a text that would be cut.

    Raises:
        TaskError: it is longer than the model's positions.
    """
    if room is not None and tokens > room:
        raise TaskError(
            f"{what} has {tokens:,} tokens with its answer, and the model has {room:,} positions (max_length): its "
            "context would be cut, and it is to be read whole; take a task of shorter contexts, or a model of more "
            "positions"
        )
