"""What ends an evaluation and a user can mend, as a sentence; no part of what an evaluation computes."""

from collections.abc import Iterator
from contextlib import contextmanager

from harness.core.errors import HarnessError
from harness.core.strangers import is_interrupt, message_of, raising_module, refusal_of, stranger_of, text_of
from harness.evaluate.advice import advice_on


@contextmanager
def explained(what: str, batch_size: int) -> Iterator[None]:
    """Turn what a user can mend in an evaluation into a sentence.

    Raises:
        HarnessError: memory ran out, a stranger's file raised, or lm-eval or transformers refuses a request.
    """
    import torch

    try:
        yield
    except HarnessError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        place = f", in {place}" if (place := stranger_of(error)) else ""
        raise HarnessError(
            f"{what}: out of memory at batch size {batch_size}{place}. Finished documents are kept: give the same "
            "command again when memory is free, or a smaller --batch_size (which is another run)."
        ) from error
    except BaseException as error:
        if is_interrupt(error):
            raise
        if reason := advice_on(error) or refusal_of(error) or _refused_by_library(error):
            raise HarnessError(f"{what}: {reason}") from error
        raise


def _refused_by_library(error: BaseException) -> str | None:
    """What lm-eval could not do with the task or its documents, or transformers with the generation arguments."""
    module = f"{raising_module(error)}."
    if module.startswith("lm_eval."):
        if text_of(error) and isinstance(error, AssertionError | TypeError | ValueError):
            return f"lm-eval refuses: {text_of(error)}"
        if isinstance(error, AssertionError) and module.startswith("lm_eval.models."):
            return "lm-eval refuses: a request is empty or too long for the model (max_length)"
        return f"lm-eval refuses: {message_of(error)}"
    if module.startswith("transformers.generation.") and isinstance(error, AssertionError | TypeError | ValueError):
        return f"transformers refuses: {text_of(error)}"
    return None
