"""Models of random weights made on a device, and the time of what they do: for tests/benchmarks/gpu.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache

from harness.contract.decoder import Decoder
from harness.contract.stack import parse
from harness.contract.study import Study
from harness.core.errors import HarnessError
from harness.measure.clock import Clock, clock_for, seconds, synchronize
from harness.model.layouts import dissect
from harness.testing.tiny import tiny_tokenizer

STUDY = Study(("The lamp was lit at dusk, and the keeper wrote down every ship that passed. " * 24,), "the benchmark")
ROUNDS = 5


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        shapes: by name, fields of a Llama's configuration.
        context: tokens that a decode step finds in the cache.
        steps: decode steps between two readings of the clock.
        batch, prompt: rows of a batch that is read, and tokens of each.
        cold: bytes of copies of a weight that are read in turn, so that none is found in a cache.
    """

    shapes: dict[str, dict[str, Any]]
    context: int
    steps: int
    batch: int
    prompt: int
    cold: int


LARGE = Sizes(
    {
        "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32},
        "1.1B": {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_hidden_layers": 16,
        },
    },
    context=128,
    steps=64,
    batch=64,
    prompt=128,
    cold=2**28,
)
SMALL = Sizes(
    {
        name: {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": layers}
        for name, layers in (("7B", 4), ("1.1B", 8))
    },
    context=8,
    steps=2,
    batch=2,
    prompt=16,
    cold=2**20,
)


def random_decoder(sizes: Sizes, shape: str, device: torch.device, **changes: Any) -> Decoder:
    """A Llama of random weights in bfloat16, made on the device, with the tests' tokenizer of bytes."""
    fields = {"num_key_value_heads": None, "vocab_size": 32000, "max_position_embeddings": 4096, "pad_token_id": 0}
    config = LlamaConfig(**(fields | sizes.shapes[shape] | changes))
    torch.manual_seed(0)
    with torch.device(device):
        module = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    return Decoder(
        module=module, tokenizer=tiny_tokenizer(), anatomy=dissect(module), fingerprint=str(config.to_dict())
    )


@contextmanager
def attached(method: str, decoder: Decoder, kernels: dict[str, str]) -> Iterator[None]:
    """A method, prepared on a text, with these kernels by place."""
    (part,) = parse(method).parts
    state = part.prepare(decoder, STUDY)
    with decoder.computed_by(kernels), part.attach(decoder, state):
        yield


def best_seconds(device: torch.device, call: Callable[[], object], calls: int = 1, rounds: int = ROUNDS) -> float:
    """Seconds of a call: the least of several rounds of calls without a pause, after one that is not timed."""
    call()
    clock: Clock = clock_for(device)
    synchronize(device)
    return min(seconds(clock, lambda: [call() for _ in range(calls)]) for _ in range(rounds)) / calls


def captured(device: torch.device, call: Callable[[], object]) -> tuple[Callable[[], object], str]:
    """The call as a CUDA graph, and what it is: on another device, or where it cannot be captured, itself and why."""
    if device.type != "cuda":
        return call, "eager: graphs need CUDA"
    try:
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        torch.cuda.synchronize(device)
        return call, f"eager: not captured ({said(error)})"
    return graph.replay, "cuda graph"


class DecodeStep:
    """One token after another at batch 1 with a static cache, without a word from the host between two of them."""

    def __init__(self, decoder: Decoder, sizes: Sizes) -> None:
        self.decoder, self.sizes = decoder, sizes
        device, capacity = decoder.device, sizes.context + sizes.steps + 8
        self.cache = StaticCache(config=decoder.module.config, max_cache_len=capacity)
        self.slots = torch.arange(capacity, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.token = torch.full((1, 1), 5, device=device)
        self.restart()

    def restart(self) -> None:
        """Back to the context, whose keys and values are zeros: their time is that of any others."""
        self.position.fill_(self.sizes.context)
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.cumulative_length.fill_(self.sizes.context)

    @torch.no_grad()
    def __call__(self) -> None:
        """Read the token and write the next one into its place."""
        logits = self.decoder.module(
            input_ids=self.token,
            attention_mask=(self.slots <= self.position)[None, None, None],  # [1, 1, 1, slots]
            position_ids=self.position[None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        self.token.copy_(logits[:, -1].argmax(-1, keepdim=True))
        self.position.add_(1)


def decode_seconds(decoder: Decoder, sizes: Sizes) -> tuple[float, float, str]:
    """Seconds of a decode step: as a graph where one can be had, and eager; and which the first is."""
    device, step = decoder.device, DecodeStep(decoder, sizes)
    step()
    step.restart()
    replay, how = captured(device, step)

    def least(call: Callable[[], object]) -> float:
        clock, least = clock_for(device), float("inf")
        for _ in range(ROUNDS):
            step.restart()
            synchronize(device)
            least = min(least, seconds(clock, lambda: [call() for _ in range(sizes.steps)]))
        return least / sizes.steps

    graph = least(replay)
    return graph, (graph if replay is step else least(step)), how


def said(error: Exception) -> str:
    """What an exception says, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def known(method: str) -> str | None:
    """Why a method cannot be tried: this version does not have it; None where it can."""
    try:
        parse(method)
    except HarnessError as error:
        return said(error)
    return None
