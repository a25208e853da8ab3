"""How long the ways to compute a linear layer take, beside torch's own product in the model's number format."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch
from torch.nn.functional import linear

from harness.model.weights.computations import Computations, Layer

TOKENS: Final = (1, 128)
"""Rows of a product: a decoding step, and a prompt."""
ROUNDS: Final = 20
BUDGET_S: Final = 0.15
"""Seconds after which a number of tokens has had rounds enough, once there are two."""
HOPELESS: Final = 2.0
"""What takes more than so many times the time of dense has no further turn."""

Times = dict[str, list[float]]
"""Seconds at each of ``TOKENS``, by name; ``BASELINE`` is the model's own product."""
BASELINE: Final = "dense"


@torch.inference_mode()
def probe(computations: Computations, layer: Layer) -> Times:
    """Time the kernels that can run here on random numbers, weights warm in the cache, as far as they fit it."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, layer.dtype)
    weight = torch.randn(layer.out, layer.inputs, generator=generator, dtype=torch.float32)
    if layer.rows > 1:
        groups = -(-layer.out // layer.rows)
        kept = torch.rand(groups, layer.inputs, generator=generator) >= layer.zeros  # [groups, in]
        weight *= kept.repeat_interleave(layer.rows, 0)[: layer.out]
    weight = weight.to(dtype)
    layers: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {BASELINE: partial(linear, weight=weight)}
    layers |= {kernel.name: kernel.make(weight, None) for kernel in computations.able}
    times: Times = {name: [] for name in layers}
    for tokens in TOKENS:
        x = torch.randn(tokens, layer.inputs, generator=generator, dtype=torch.float32).to(dtype)
        for name, seconds in shortest({name: partial(call, x) for name, call in layers.items()}).items():
            times[name].append(seconds)
    return times


def shortest(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of the shortest call of each; they take turns, so that other work meets all of them."""
    read = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()  # the first call of a shape sets things up
    end = time.perf_counter() + BUDGET_S
    for turn in range(ROUNDS):
        if turn >= 2 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            if turn and best[name] > HOPELESS * best[BASELINE]:
                continue
            began = read()
            call()
            best[name] = min(best[name], read() - began)
    return best
