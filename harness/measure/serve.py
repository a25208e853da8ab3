"""Serve one request alone and say when each token came."""

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from harness.contract.decoder import ForwardContext, Row
from harness.measure.clock import synchronize

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder


@dataclass(frozen=True, slots=True)
class CostRequest:
    """A request of the task, as the model sees it.

    Attributes:
        tokens: the prompt of a generation, or the text that is scored, without its last token.
        prompt_length: tokens that a decision of the method may look at.
        new_tokens: tokens to generate, exactly; 0 scores the text in one forward, as lm-eval does.
    """

    task: str
    document: int
    tokens: tuple[int, ...]
    prompt_length: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """When a request's tokens came, in seconds after it was submitted; the last one ends it."""

    times: tuple[float, ...]

    @property
    def end_to_end(self) -> float:
        """Seconds to the last token."""
        return self.times[-1]

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.times[0]

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens that follow each other (ITL)."""
        return [after - before for before, after in pairwise(self.times)]

    @property
    def tpot(self) -> float | None:
        """(last - first) / (tokens - 1), as MLPerf's LoadGen has it; None for fewer than two tokens."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None


def serve(model: "Decoder", request: CostRequest) -> Served:
    """Serve a request at batch size 1, by ``generate`` or one forward, exactly as an evaluation would."""
    row = Row(request.task, request.document, (0,), request.prompt_length, len(request.tokens))
    generates = request.new_tokens > 0
    model.context = ForwardContext((row,), "generate" if generates else "score", "left" if generates else "right")
    ids = torch.tensor([request.tokens], device=model.device)
    try:
        synchronize(model.device)
        began = time.perf_counter()
        if generates:
            stamps = _Stamps(model.device)
            model.module.generate(ids, **_generation(model, ids, request.new_tokens, stamps))
            return Served(tuple(stamp - began for stamp in stamps.times))
        with torch.no_grad():
            model.module(ids)
        synchronize(model.device)
        return Served((time.perf_counter() - began,))
    finally:
        model.context = None


class _Stamps(StoppingCriteria):  # type: ignore[misc] # transformers has no type stubs
    """Asked after every token whether to stop: notes the time and never says yes."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        synchronize(self.device)
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _generation(model: "Decoder", ids: torch.Tensor, new_tokens: int, stamps: _Stamps) -> dict[str, Any]:
    """Greedy, with a cache, exactly so many tokens: the end token may not come before."""
    return {
        "attention_mask": torch.ones_like(ids),
        "min_new_tokens": new_tokens,
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": model.tokenizer.pad_token_id,
        "stopping_criteria": StoppingCriteriaList([stamps]),
    }
