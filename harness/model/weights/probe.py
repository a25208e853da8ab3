"""How long the ways to compute a linear layer take, beside torch's own product in the model's number format.

On a CPU few tokens meet weights that no cache holds, as they do in a model that is larger than the last cache. On CUDA
several copies of each layer run one after the other between two events of the device, more than its cache holds: what
a model's step meets, with the launches that its code makes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import torch
from torch.nn.functional import linear

from harness.model.weights.computations import TOKENS, Computations, Layer

FEW: Final = 8
"""Up to so many tokens wait for the weights."""
CACHE: Final = 2**25
"""Bytes of a last cache."""
LAYERS: Final = 100
"""Linear layers of a model, about: where so many like one fit into the cache, that one stays there in a model too."""
ROUNDS: Final = 20
BUDGET_S: Final = 0.15
"""Seconds after which a number of tokens has had rounds enough, once there are two."""
HOPELESS: Final = 2.0
"""What takes more than so many times the time of dense has no further turn."""
CACHES: Final = 2
"""Times the cache of a CUDA device that the copies of a layer fill together."""
MOST_COPIES: Final = 16
"""So that a small layer, which stays in the cache in a model too, is copied a few times alone."""

Times = dict[str, list[float]]
"""Seconds at each of ``TOKENS``, by name; ``BASELINE`` is the model's own product."""
BASELINE: Final = "dense"

Product = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def probe(computations: Computations, layer: Layer) -> Times:
    """Time the kernels that can run here on random numbers."""
    device = torch.device(computations.device)
    generator = torch.Generator().manual_seed(0)
    weight = _weight(layer, generator).to(device)
    makers: dict[str, Callable[[], Product]] = {BASELINE: lambda: partial(linear, weight=weight.clone())}
    makers |= {each.name: partial(each.make, weight, None) for each in (*computations.able, computations.dense)}
    layers = {name: [make()] for name, make in makers.items()}
    count = copies(weight.nbytes, [each for (each,) in layers.values()], device)
    is_cold = device.type == "cpu" and weight.nbytes * LAYERS > CACHE
    count += is_cold
    for name, make in makers.items():
        layers[name] += [make() for _ in range(1, count)]
    times: Times = {name: [] for name in layers}
    for tokens in TOKENS:
        seconds, timed = seconds_on(device), count
        if is_cold and tokens <= FEW:
            seconds, timed = partial(_cold, seconds, torch.ones(CACHE)), 1
        x = torch.randn(tokens, layer.inputs, generator=generator, dtype=torch.float32).to(device, weight.dtype)
        calls = {name: partial(_run, each, x) for name, each in layers.items()}
        for name, least in shortest(calls, seconds).items():
            times[name].append(least / timed)
    return times


def _weight(layer: Layer, generator: torch.Generator) -> torch.Tensor:
    """Random weights [out, in] of the layer's type, with its share of blocks that are zero."""
    weight = torch.randn(layer.out, layer.inputs, generator=generator, dtype=torch.float32)
    if layer.rows > 1:
        groups = -(-layer.out // layer.rows)
        kept = torch.rand(groups, layer.inputs, generator=generator) >= layer.zeros  # [groups, in]
        weight *= kept.repeat_interleave(layer.rows, 0)[: layer.out]
    elif layer.zeros:
        weight.view(layer.out, -1, 4)[..., 1:3] = 0
    return weight.to(getattr(torch, layer.dtype))


def copies(dense_bytes: int, layers: Sequence[Product], device: torch.device) -> int:
    """How many copies of each layer are timed in turn: on CUDA so many that the smallest one fills the cache."""
    if device.type != "cuda":
        return 1
    least = min(getattr(layer, "weight_bytes", dense_bytes) for layer in layers)
    cache: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1, min(MOST_COPIES, -(-CACHES * cache // least)))


def _run(layers: Sequence[Product], x: torch.Tensor, which: slice = slice(None)) -> None:
    for layer in layers[which]:
        layer(x)


def _cold(
    seconds: Callable[[Callable[[], object]], float], filling: torch.Tensor, call: Callable[..., object]
) -> float:
    """Seconds of the second copy of a layer, after the cache was filled with something else, and the code was there."""
    filling.sum()
    call(which=slice(1))
    return seconds(partial(call, which=slice(1, None)))


def seconds_on(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """What times a call on a device: a CPU's clock, or events in the queue of the CUDA device itself."""
    if device.type == "cuda":
        return partial(_between_events, device=device)
    return partial(_by_clock, time.thread_time if torch.get_num_threads() == 1 else time.perf_counter)


def _by_clock(read: Callable[[], float], call: Callable[[], object]) -> float:
    began = read()
    call()
    return read() - began


def _between_events(call: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        call()
        ended.record()
        ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def shortest(
    calls: Mapping[str, Callable[[], object]], seconds: Callable[[Callable[[], object]], float]
) -> dict[str, float]:
    """Seconds of the shortest call of each; they take turns, so that other work meets all of them."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        seconds(call)  # the first call of a shape sets things up
    end = time.perf_counter() + BUDGET_S
    for turn in range(ROUNDS):
        if turn >= 2 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            if turn and best[name] > HOPELESS * best[BASELINE]:
                continue
            best[name] = min(best[name], seconds(call))
    return best
