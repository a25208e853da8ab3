"""A compiled attention in a part that is not dense's runs as it does unseen, and what it multiplied is not known."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from harness.contract.decoder import Decoder
from harness.measure.counted import FLEX
from harness.measure.flops import executed_flops, unknown_flops
from harness.measure.shape import ModelShape
from harness.testing.serve import TEXTS, Answers, generate, score
from harness.testing.tiny import tiny_decoder


class Doubled(nn.Module):
    """What a method puts in a part's place: the part, whose output it multiplies."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        states = output[0] if isinstance(output, tuple) else output
        states = states @ torch.eye(states.shape[-1])
        return (states, *output[1:]) if isinstance(output, tuple) else states


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    """Two layers whose attention is flex_attention, which runs without a compiler here."""
    decoder = tiny_decoder("llama", layers=2)
    decoder.module.set_attn_implementation(FLEX)
    torch.compiler.set_stance("force_eager")
    yield decoder
    torch.compiler.set_stance("default")


def put(decoder: Decoder, undo: ExitStack, part: str) -> None:
    layer = decoder.anatomy.blocks[1].module
    inner = getattr(layer, part)
    setattr(layer, part, Doubled(inner))
    undo.callback(setattr, layer, part, inner)


def unknown(decoder: Decoder, answers: Answers) -> str | None:
    (row,) = answers.segments
    return unknown_flops(ModelShape.of(decoder), row)


@pytest.mark.parametrize("serve", [score, generate])
def test_a_changed_attention_runs_and_is_not_counted(decoder: Decoder, serve: Callable[..., Answers]) -> None:
    with ExitStack() as undo:
        put(decoder, undo, "self_attn")
        assert FLEX in (unknown(decoder, serve(decoder, TEXTS[:1])) or "")
    assert unknown(decoder, serve(decoder, TEXTS[:1])) is None


def test_it_is_run_as_it_is_unseen(decoder: Decoder) -> None:
    """No mode of torch's looks on, under which it would not be compiled."""
    modes: list[int] = []
    layer = decoder.anatomy.blocks[1].module
    projection = layer.self_attn.o_proj

    def look(*_: Any) -> None:
        modes.append(len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()))

    with ExitStack() as undo:
        put(decoder, undo, "self_attn")
        undo.callback(projection.register_forward_hook(look).remove)
        score(decoder, TEXTS[:1])
    assert modes == [0]


def test_a_changed_mlp_beside_it_is_counted(decoder: Decoder) -> None:
    shape = ModelShape.of(decoder)
    dense = executed_flops(shape, score(decoder, TEXTS[:1]).segments[0]).total
    with ExitStack() as undo:
        put(decoder, undo, "mlp")
        answers = score(decoder, TEXTS[:1])
        assert unknown(decoder, answers) is None
        tokens, width = len(TEXTS[0].tokens), decoder.config.hidden_size
        assert executed_flops(shape, answers.segments[0]).total == dense + 2 * tokens * width**2
