"""What an evaluation asks of ``generate``, and whether the logits that it writes from are numbers."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from harness.core.errors import HarnessError

SEVERAL: Final = ("num_beams", "num_return_sequences")
"""Arguments that ask for more than one continuation of a prompt when they are above 1."""


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``HFLM._model_generate`` as it hands them on to ``generate``, but for the attention mask."""
    kept = {name: value for name, value in options.items() if name != "attention_mask"}
    if not kept.get("do_sample") and kept.get("temperature", 0.0) == 0.0:
        kept.pop("temperature", None)
        kept["do_sample"] = False
    return kept


def require_one_continuation(own: Any, options: Mapping[str, Any]) -> None:
    """Refuse generations that a trace cannot charge to one row each.

    Args:
        own: the model's generation config.
        options: the arguments of the evaluation.

    Raises:
        HarnessError: several continuations of a prompt are asked for, by the task, the user, or the checkpoint.
    """
    for name in SEVERAL:
        count = options[name] if name in options else getattr(own, name, None)
        if count not in (None, 1):
            source = "" if name in options else " (from the checkpoint's generation_config.json)"
            raise HarnessError(
                f"{name}={count}{source}: only one continuation of a prompt is traced; give --gen_kwargs {name}=1"
            )


class NotANumber(LogitsProcessor):  # type: ignore[misc] # transformers has no type stubs
    """Notes the rows of a batch whose logits were ever no numbers, and changes none."""

    def __init__(self) -> None:
        self.processors = LogitsProcessorList([self])
        self._broken: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Look at the scores of each row's next token, [rows, vocabulary], and return them."""
        # not the lowest: forbidden tokens have -inf
        broken = ~scores.amax(-1).isfinite()  # [rows]
        self._broken = broken if self._broken is None else self._broken | broken
        return scores

    def rows(self, count: int) -> list[bool]:
        """Whether it happened to each row."""
        return [False] * count if self._broken is None else self._broken.tolist()
