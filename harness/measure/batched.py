"""Serve several requests in one batch, padded as an evaluation pads them, and note when their tokens arrived."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil
import torch

from harness.core.errors import NoRoomError
from harness.core.strangers import text_of
from harness.measure.clock import synchronize
from harness.measure.serve import Arrivals, CostRequest, Served, generation
from harness.results.throughput import BATCHES

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

_FULL: Final = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")
"""What torch says in a ``RuntimeError`` of an allocation that failed: on a processor, in a library, elsewhere."""


@dataclass(frozen=True)
class Batch:
    """Requests that are served together, of one kind and with the same arguments of generation.

    Attributes:
        new_tokens: that each of them writes; 0 scores the texts.
    """

    requests: tuple[CostRequest, ...]
    new_tokens: int

    @property
    def width(self) -> int:
        """Tokens of each row, padding included."""
        return max(len(request.tokens) for request in self.requests)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that are read, padding left out."""
        return sum(len(request.tokens) for request in self.requests)

    @property
    def pad_tokens(self) -> int:
        """Tokens of padding."""
        return self.width * len(self.requests) - self.prompt_tokens


def batches_of(requests: Sequence[CostRequest], size: int) -> list[Batch]:
    """``BATCHES`` batches of texts that are alike in length, spread over the lengths; texts repeat where they must.

    Of the requests, those count that can share a batch with the first. All rows write as many tokens: as many as the
    longest of their answers, where every request allows for that.
    """
    alike = sorted(_alike(requests), key=lambda each: len(each.tokens))
    longest = max(each.new_tokens for each in alike)
    new_tokens = min([longest, *(max(each.most, 2) for each in alike)]) if longest else 0
    alike = [alike[index % len(alike)] for index in range(max(len(alike), size))] if len(alike) < size else alike
    starts = [round(number * (len(alike) - size) / (BATCHES - 1)) for number in range(BATCHES)]
    return [Batch(tuple(alike[start : start + size]), new_tokens) for start in starts]


def _alike(requests: Sequence[CostRequest]) -> list[CostRequest]:
    first = requests[0]
    kind = [each for each in requests if bool(each.new_tokens) == bool(first.new_tokens)]
    return [each for each in kind if each.options == first.options]


def require_room(model: "Decoder", requests: Sequence[CostRequest], size: int) -> None:
    """Refuse a batch size whose logits alone are more than is free, before a system ends the process for trying.

    Raises:
        NoRoomError: they are.
    """
    alike = _alike(requests)
    predicted = 1 if alike[0].new_tokens else max(len(each.tokens) for each in alike)  # tokens of a row
    needed = size * predicted * model.config.vocab_size * model.module.dtype.itemsize
    free = _free(model.device)
    if needed > free:
        raise NoRoomError(f"the logits of {size} rows take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


def _free(device: torch.device) -> int:
    """Bytes that can be allocated; of a GPU's, what torch keeps for itself and does not use is among them."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def serve_batch(model: "Decoder", batch: Batch) -> Served:
    """Serve a batch: by ``generate`` padded on the left, or in one forward padded on the right, as an evaluation does.

    Its first arrival is that of the first token of every row, or the end of the forward.

    Raises:
        NoRoomError: memory does not hold it.
    """
    try:
        return _serve(model, batch)
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
    # out of the handler, whose exception would keep the batch's tensors
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    raise NoRoomError(
        f"a batch of {len(batch.requests)} rows of {batch.width + batch.new_tokens} tokens: out of memory"
    )


def is_full(error: BaseException) -> bool:
    """Whether an exception says that memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in text_of(error) for text in _FULL)


def _serve(model: "Decoder", batch: Batch) -> Served:
    ids = torch.tensor([_padded(request, batch, model) for request in batch.requests], device=model.device)
    rows = [request.row for request in batch.requests]
    with model.serving(rows, "generate" if batch.new_tokens else "score", batch.width) as context:
        synchronize(model.device)
        began = time.perf_counter()
        if not batch.new_tokens:
            with torch.no_grad():
                model.module(ids)
            synchronize(model.device)
            return Served((time.perf_counter() - began,), (0,))
        lengths = torch.tensor([[row.length] for row in rows], device=model.device)  # [rows, 1]
        mask = (torch.arange(batch.width, device=model.device) >= batch.width - lengths).long()  # [rows, tokens]
        arrivals = Arrivals(context, model.device, batch.width, batch.new_tokens)
        most = batch.width + batch.new_tokens
        model.module.generate(
            ids, **generation(model, batch.requests[0], arrivals, attention_mask=mask, max_length=most)
        )
        return Served(tuple(stamp - began for stamp in arrivals.times), tuple(arrivals.tokens))


def _padded(request: CostRequest, batch: Batch, model: "Decoder") -> list[int]:
    """A row's tokens: prompts are padded on the left by the tokenizer's token, scored texts on the right by 0."""
    padding = [model.tokenizer.pad_token_id if batch.new_tokens else 0] * (batch.width - len(request.tokens))
    return [*padding, *request.tokens] if batch.new_tokens else [*request.tokens, *padding]
