"""What a training is given, checked before its first step."""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, cast

import torch

from harness.core.errors import MethodError
from harness.model.given import unusable

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

FASTEST: Final = 1000.0
"""A rate above this one is a mistake: Adam's first step is as long as its rate."""


def check_given(model: "Decoder", parameters: Any, batches: Any, rate: Any, method: str) -> None:
    """Refuse what cannot be trained.

    Raises:
        MethodError: with the method's name.
    """
    if not isinstance(rate, Real) or not 0 < cast("float", rate) <= FASTEST:
        raise MethodError(f"{method}: its rate of training is a number above 0, at most {FASTEST:g}, not {rate!r:.60}")
    if not isinstance(parameters, Mapping) or not parameters:
        raise MethodError(f"{method}: a training has tensors to train, by name, and was given none")
    for name, start in parameters.items():
        if reason := _unlike_a_start(start):
            raise MethodError(f"{method}: {name} cannot be trained: its start is {reason}, no tensor of real numbers")
    if not isinstance(batches, Sequence):
        raise MethodError(f"{method}: the batches of a training are a list of tensors, not a {type(batches).__name__}")
    words = model.module.get_input_embeddings().weight.shape[0]
    for step, batch in enumerate(batches, start=1):
        if reason := _unlike_a_batch(batch, model.device, words):
            raise MethodError(
                f"{method}: batch {step} of its training is {reason}; a batch is token ids, [rows, tokens], as "
                "Study.batches gives them"
            )


def _unlike_a_start(start: Any) -> str | None:
    if not isinstance(start, torch.Tensor):
        return f"a {type(start).__name__}"
    if start.is_meta:
        return "a tensor without values"
    return unusable(start, start.device) or (None if start.is_floating_point() else f"of {start.dtype}")


def _unlike_a_batch(batch: Any, device: torch.device, words: int) -> str | None:
    if not isinstance(batch, torch.Tensor):
        return f"a {type(batch).__name__}"
    if kind := unusable(batch, device):
        return kind
    if batch.dtype not in (torch.int64, torch.int32) or batch.ndim != 2 or not batch.numel():
        return f"a tensor of {batch.dtype} and of the shape {list(batch.shape)}"
    least, most = int(batch.min()), int(batch.max())
    return None if least >= 0 and most < words else f"of ids from {least} to {most}, beyond 0 to {words - 1}"
