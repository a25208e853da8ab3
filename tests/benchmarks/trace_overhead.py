"""What the tracer costs: time of a forward with it over time without, on a 12-layer, 256-wide Llama.

Run ``python tests/benchmarks/trace_overhead.py``. Both kinds of forward are measured in turn, so that a busy
machine slows both alike, and the least CPU time of each is compared.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from transformers import DynamicCache

from harness.measure.trace import Tracer
from harness.model.context import ForwardContext, Row
from harness.testing.tiny import tiny_decoder

ROUNDS = 500
VOCABULARY = 1000
PROMPT = 64
BUDGET = 1.05


def main() -> None:
    """Print the ratio for a cached decode step and for a prefill with the collection of its trace."""
    torch.set_num_threads(1)
    model = tiny_decoder(
        "llama",
        layers=12,
        hidden_size=256,
        intermediate_size=688,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    )
    ids = torch.randint(3, 200, (1, PROMPT))
    cache = DynamicCache(config=model.module.config)

    def begin() -> None:
        model.context = ForwardContext((Row("text", 0, (0,), PROMPT, PROMPT),), "generate", "left")

    def prefill(tracer: Tracer | None) -> None:
        model.module(ids, logits_to_keep=1)
        if tracer is not None:
            tracer.collect()

    def decode(tracer: Tracer | None) -> None:
        model.module(ids[:, :1], past_key_values=cache)

    with torch.inference_mode():
        model.module(ids, past_key_values=cache)
        report("prefill of 64 tokens", model, prefill, begin, lambda: None)
        report("decode step after 64 tokens", model, decode, begin, lambda: cache.crop(-1))


def report(
    name: str,
    model: object,
    forward: Callable[[Tracer | None], None],
    before: Callable[[], None],
    after: Callable[[], None],
) -> None:
    best = {True: float("inf"), False: float("inf")}
    for turn in range(2 * ROUNDS):
        traced = turn % 2 == 0
        with Tracer(model) if traced else nullcontext() as tracer:
            before()
            start = time.thread_time()
            forward(tracer)
            best[traced] = min(best[traced], time.thread_time() - start)
            after()
    ratio = best[True] / best[False]
    verdict = "within" if ratio <= BUDGET else "over"
    print(
        f"{name}: {best[False] * 1e3:.3f} ms bare, {best[True] * 1e3:.3f} ms traced, "
        f"ratio {ratio:.3f} ({verdict} {BUDGET})"
    )


if __name__ == "__main__":
    main()
