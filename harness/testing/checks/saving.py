"""Savings that a clock or the memory shows: on a larger model, beside dense, in turns."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from harness.contract.decoder import Row
from harness.contract.facts import Savings
from harness.measure.cache import bytes_of
from harness.measure.clock import between, clock_for, mark
from harness.measure.shape import ModelShape
from harness.testing.outcome import Failed, Skipped
from harness.testing.subject import Subject

if TYPE_CHECKING:
    from harness.contract.decoder import Decoder

TOKENS = 128
MANY_TOKENS = 2048
"""Of the text on which methods that choose keys are measured: in short ones, attention is next to nothing."""
STEPS = 4
ROUNDS = 8
TRIALS = 2
FASTER, SMALLER = 0.9, 0.98
"""Time, and bytes, in parts of dense's, that count as saved."""

_LARGER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 256},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 768},
}
_LARGER_LLAMA = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64}


@dataclass(frozen=True)
class _Cost:
    """Seconds of one forward over a text and of a few decode steps; bytes of the weights and of the cache."""

    forward: float
    steps: float
    weights: int
    cache: int


_Round = tuple[_Cost, _Cost]  # the method's, and dense's immediately before


def saves_measurably(subject: Subject) -> None:
    """Where savings are real, a forward, decoding, the weights or the cache measure smaller than dense's.

    CPU time of one thread, or time on the GPU, dense and method in turns, on a larger model. Both the least and the
    median of several rounds must be smaller, as either alone may be by chance where other work shares the machine.
    """
    if subject.savings is not Savings.REAL:
        raise Skipped(f"its savings are {subject.savings}, so there is nothing to measure")
    if subject.drafts:
        raise Skipped("what drafts save depends on the text that is written, which random weights do not show")
    family = subject.working[0]
    tokens, layers = (MANY_TOKENS, 2) if subject.stack.chooses_keys else (TOKENS, 4)
    positions = {"max_position_embeddings": tokens + STEPS, "n_positions": tokens + STEPS}
    decoder = subject.decoder(family, layers=layers, **_LARGER.get(family, _LARGER_LLAMA), **positions)
    rounds = [_round(subject, decoder, tokens)]
    if any(share < SMALLER for share in _memory_shares(rounds[0]).values()):
        return
    for _ in range(TRIALS):
        rounds += [_round(subject, decoder, tokens) for _ in range(ROUNDS)]
        shares = _time_shares(rounds)
        if any(share < FASTER for share in shares.values()):
            return
    shares |= _memory_shares(rounds[0])
    measured = ", ".join(f"{share:.1%} of the {what}" for what, share in shares.items())
    raise Failed(f"it declares real savings, but on a {family} of 256 channels it takes, of dense's, {measured}")


def _round(subject: Subject, decoder: "Decoder", tokens: int) -> _Round:
    dense = _measure(decoder, tokens)
    with subject.attached(decoder):
        return _measure(decoder, tokens), dense


def _memory_shares(pair: _Round) -> dict[str, float]:
    method, dense = pair
    return {
        "weights": method.weights / dense.weights,
        "cache": method.cache / dense.cache if dense.cache else 1.0,
    }


def _time_shares(rounds: list[_Round]) -> dict[str, float]:
    return {
        "time of a forward": _time_share([(method.forward, dense.forward) for method, dense in rounds]),
        "time of decoding": _time_share([(method.steps, dense.steps) for method, dense in rounds]),
    }


def _time_share(pairs: list[tuple[float, float]]) -> float:
    """The larger of two estimates: of the least times, and in the median round."""
    least = min(method for method, _ in pairs) / min(dense for _, dense in pairs)
    return max(least, median(method / dense for method, dense in pairs))


@torch.no_grad()
def _measure(decoder: "Decoder", tokens: int) -> _Cost:
    ids = torch.arange(tokens, device=decoder.device)[None] % 250 + 3  # [1, tokens]
    row = Row("text", 0, (0,), tokens, tokens)
    with _one_thread(), decoder.serving([row], "generate"):
        clock = clock_for(decoder.device)
        start = mark(clock)
        cache = decoder.module(ids, use_cache=True).past_key_values
        forward = between(start, mark(clock))
        start = mark(clock)
        for _ in range(STEPS):
            decoder.module(ids[:, :1], past_key_values=cache, use_cache=True)
        steps = between(start, mark(clock))
    return _Cost(forward, steps, ModelShape.of(decoder).bytes, bytes_of(cache))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
