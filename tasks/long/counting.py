"""How many tokens a text has: by the model's own tokenizer where lm-eval says which, else by its letters."""

import logging
import re
from functools import lru_cache, partial
from typing import Any, Final

from .documents import Count

_PIECE: Final = re.compile(r"[A-Za-z]{1,6}|[^\sA-Za-z]|\n")
"""A piece of a text that is about a token: up to six letters, a digit, a sign."""


def counter(
    tokenizer: Any = None,
    pretrained: Any = None,
    revision: str | None = None,
    subfolder: str | None = None,
    trust_remote_code: bool | None = None,
) -> Count:
    """Counts the tokens of texts.

    Args:
        tokenizer, pretrained, revision, subfolder, trust_remote_code: lm-eval's model arguments, which it hands to
            tasks as metadata; without a name of either the count is an estimate from the text alone.
    """
    name = tokenizer or pretrained
    if not isinstance(name, str):
        return estimate
    at = {"revision": revision, "subfolder": subfolder} if tokenizer is None else {}
    try:
        return partial(_count, _loaded(name, bool(trust_remote_code), **{key: at[key] for key in at if at[key]}))
    except (OSError, ValueError) as error:  # another kind of model, such as one behind an interface
        logging.getLogger(__name__).warning(
            "%s has no tokenizer here, so that lengths are estimated: %s", name, str(error).partition("\n")[0]
        )
        return estimate


def estimate(text: str) -> int:
    """About as many tokens as a tokenizer of tens of thousands of English pieces gives, rather more."""
    return len(_PIECE.findall(text))


@lru_cache(maxsize=4)
def _loaded(name: str, trust_remote_code: bool, **at: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **at)


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, verbose=False)["input_ids"])
