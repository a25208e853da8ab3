"""What an evaluation asks of ``generate``, and whether the logits that it writes from are numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from harness.contract.decoder import Decoder, ForwardContext, Row, input_shape
from harness.core.errors import HarnessError, ModelError

SEVERAL: Final = ("num_beams", "num_return_sequences")
"""Arguments that ask for more than one continuation of a prompt when they are above 1."""
UNTRACED: Final = ("return_dict_in_generate", "assistant_early_exit")
"""Arguments that give something other than tokens, or run a part of the model in drafts of its own."""


def arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``HFLM._model_generate`` as it hands them on to ``generate``, but for the attention mask."""
    kept = {name: value for name, value in options.items() if name != "attention_mask"}
    if not kept.get("do_sample") and kept.get("temperature", 0.0) == 0.0:
        kept.pop("temperature", None)
        kept["do_sample"] = False
    return kept


def require_traceable(own: Any, options: Mapping[str, Any]) -> None:
    """Refuse generations that a trace cannot charge to one row each.

    Args:
        own: the model's generation config.
        options: the arguments of the evaluation; like ``generate``, they win over ``own``.

    Raises:
        HarnessError: several continuations of a prompt are asked for, by the task, the user, or the checkpoint, or what
            cannot be traced.
    """
    for name in (*SEVERAL, *UNTRACED):
        value = options[name] if name in options else getattr(own, name, None)
        source = "" if name in options else " (from the checkpoint's generation_config.json)"
        if name in UNTRACED and value:
            neutral = "false" if name == "return_dict_in_generate" else "None"
            raise HarnessError(f"{name}={value}{source} cannot be traced; give --gen_kwargs {name}={neutral}")
        if name in SEVERAL and value != 1 and (value is not None or name in options):
            raise HarnessError(
                f"{name}={value}{source}: only one continuation of a prompt is traced; give --gen_kwargs {name}=1"
            )


class BrokenLogits(LogitsProcessor):  # type: ignore[misc] # transformers has no type stubs
    """Notes when the model's own logits were first no numbers, for each row of a batch, and changes none.

    They are looked at as they leave the model, as some of transformers' processors mend or hide them.

    Attributes:
        processors: what to give to ``generate``, so that it is known how many tokens were written meanwhile.
    """

    def __init__(self, context: ForwardContext) -> None:
        self.processors = LogitsProcessorList([self])
        self._context = context
        self._pending: torch.Tensor | None = None  # bool [rows]: broken since a token was chosen last
        self._first: torch.Tensor | None = None  # [rows]: tokens that were written before the first broken logits

    def look(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of the model; it comes after the context's own."""
        tokens = input_shape(args, kwargs)[1]
        if self._context.processed < self._context.width:  # a part of the prompt
            return
        logits = output.logits  # [rows, positions, vocabulary]
        if self._context.processed - tokens < self._context.width:  # of a prompt, its end alone is read
            logits = logits[:, -1:]
        # not the lowest: impossible tokens may have -inf
        broken = (~logits.amax(-1).isfinite()).any(-1)  # [rows]
        self._pending = broken if self._pending is None else self._pending | broken

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Date what was noted, before a token is chosen by the scores, [rows, vocabulary], which are returned."""
        written = input_ids.shape[1] - self._context.width
        if self._pending is not None and len(self._pending) == len(scores):
            never = torch.full_like(self._pending, NEVER, dtype=torch.long)
            first = never if self._first is None else self._first
            self._first = torch.where(self._pending, first.clamp(max=written), first)
            self._pending = None
        return scores

    def rows(self, used: Sequence[int]) -> list[bool]:
        """Whether one of the tokens that each row used was chosen by broken logits."""
        first = [NEVER] * len(used) if self._first is None else self._first.tolist()
        return [broken < count for broken, count in zip(first, used, strict=True)]


NEVER: Final = 2**62


@contextmanager
def writing(model: Decoder, rows: Sequence[Row], width: int) -> Iterator[BrokenLogits]:
    """Serve a batch of prompts while its logits are watched.

    Raises:
        ModelError: a token was to be drawn by chance from logits that are no numbers.
    """
    with model.serving(rows, "generate", width) as context, ExitStack() as hooks:
        watch = BrokenLogits(context)
        hooks.callback(model.module.register_forward_hook(watch.look, with_kwargs=True).remove)
        try:
            yield watch
        except RuntimeError as error:  # torch draws from no such probabilities
            broken = [row for row, is_broken in zip(rows, watch.rows([NEVER] * len(rows)), strict=True) if is_broken]
            if not broken:
                raise
            raise ModelError(
                f"{broken[0].task}: document {broken[0].document}: the model's logits are not a number, so no token "
                "can be drawn by them; a checkpoint that overflows may work with --model_args dtype=float32"
            ) from error
