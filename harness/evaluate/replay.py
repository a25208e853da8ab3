"""The audit of a run's counts: a few of its own requests run again, counted by PyTorch and by the trace."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lm_eval.models.huggingface import HFLM

from harness.contract.decoder import ForwardContext
from harness.measure.audit import flops_audit_ratio
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer

if TYPE_CHECKING:
    from harness.evaluate.lm import HarnessLM

NEW_TOKENS = 4
"""Tokens that a replayed generation writes: a prefill and three decode steps."""


@dataclass(frozen=True)
class Example:
    """A request of a run: its context of one row, and the tokens that the model read, [1, tokens]."""

    context: ForwardContext
    tokens: torch.Tensor


def audit_ratio(lm: "HarnessLM", tracer: Tracer, examples: Iterable[Example], shape: ModelShape) -> float:
    """FLOPs counted by PyTorch's operator counter over those of the formulas; 1.0 where both agree."""

    def replay() -> list[Segment]:
        return [segment for example in examples for segment in _run(lm, tracer, example)]

    return flops_audit_ratio(shape, replay)


def _run(lm: "HarnessLM", tracer: Tracer, example: Example) -> list[Segment]:
    """What the tracer sees of one request."""
    lm.decoder.context = example.context
    try:
        if example.context.kind == "score":
            HFLM._model_call(lm, example.tokens)
        else:
            length = min(example.tokens.shape[1] + NEW_TOKENS, lm.max_length)
            mask = torch.ones_like(example.tokens)
            HFLM._model_generate(lm, example.tokens, max_length=length, stop=[], attention_mask=mask)
    finally:
        lm.decoder.context = None
    return [segment for row in tracer.collect() for segment in row]
