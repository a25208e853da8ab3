"""Savings that a clock or the memory shows: on a larger model, beside dense, in turns."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch

from harness.measure.shape import ModelShape
from harness.method import Savings
from harness.testing.check import Failed, Skipped
from harness.testing.subject import Subject

if TYPE_CHECKING:
    from harness.model.decoder import Decoder

TOKENS = 128
STEPS = 4
ROUNDS = 8
TRIALS = 3
FASTER, SMALLER = 0.95, 0.98
"""Time, and bytes, in parts of dense's, that count as saved: noise in the least of several times stays above."""

_LARGER: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 256},
    "opt": {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 768},
}
_LARGER_LLAMA = {"hidden_size": 256, "intermediate_size": 768, "head_dim": 64}


@dataclass(frozen=True)
class _Cost:
    """Of one forward over a text and one decode step, in seconds; of the weights and the cache, in bytes."""

    forward: float
    step: float
    weights: int
    cache: int

    def least(self, other: "_Cost") -> "_Cost":
        return _Cost(min(self.forward, other.forward), min(self.step, other.step), self.weights, self.cache)


def saves_measurably(subject: Subject) -> None:
    """Where savings are real, a forward, a decode step, the weights or the cache measure smaller than dense's.

    Least thread time of several rounds, dense and method in turns, on one thread.
    """
    if subject.stack.savings is not Savings.REAL:
        raise Skipped(f"it declares savings = {subject.stack.savings}, so there is nothing to measure")
    family = subject.working[0]
    decoder = subject.decoder(family, **_LARGER.get(family, _LARGER_LLAMA))
    ours, dense = _least(subject, decoder)
    for _ in range(TRIALS):  # a true saving shows sooner or later
        if _saved(ours, dense):
            return
        again = _least(subject, decoder)
        ours, dense = ours.least(again[0]), dense.least(again[1])
    shares = ", ".join(f"{what} {share:.1%}" for what, share in _shares(ours, dense).items())
    raise Failed(
        f"it declares real savings, but on a {family} of 256 channels nothing measures smaller; of dense's it takes: "
        f"{shares}"
    )


def _least(subject: Subject, decoder: "Decoder") -> tuple[_Cost, _Cost]:
    """The method's least cost and dense's, over rounds of both."""
    ours, dense = [], []
    for _ in range(ROUNDS):
        dense.append(_measure(decoder))
        with subject.attached(decoder):
            ours.append(_measure(decoder))
    return reduce(_Cost.least, ours), reduce(_Cost.least, dense)


def _saved(ours: _Cost, dense: _Cost) -> bool:
    shares = _shares(ours, dense)
    return any(share < (FASTER if "time" in what else SMALLER) for what, share in shares.items())


def _shares(ours: _Cost, dense: _Cost) -> dict[str, float]:
    return {
        "time of a forward": ours.forward / dense.forward,
        "time of a decode step": ours.step / dense.step,
        "weights": ours.weights / dense.weights,
        "cache": ours.cache / dense.cache if dense.cache else 1.0,
    }


@torch.no_grad()
def _measure(decoder: "Decoder") -> _Cost:
    ids = torch.arange(TOKENS)[None] % 250 + 3
    with _one_thread():
        start = time.thread_time()
        cache = decoder.module(ids, use_cache=True).past_key_values
        forward = time.thread_time() - start
        step = min(_step(decoder, cache) for _ in range(STEPS))
    held = [tensor for layer in getattr(cache, "layers", ()) for tensor in (layer.keys, layer.values)]
    size = sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor))
    return _Cost(forward, step, ModelShape.of(decoder).bytes, size)


def _step(decoder: "Decoder", cache: Any) -> float:
    start = time.thread_time()
    decoder.module(torch.full((1, 1), 3), past_key_values=cache, use_cache=True)
    return time.thread_time() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
