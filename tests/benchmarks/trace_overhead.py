"""What the tracer costs: time of a forward with it over time without, on a 12-layer, 256-wide Llama.

Run ``python tests/benchmarks/trace_overhead.py``. Both kinds of forward are measured in turn, by CPU time, so
that a busy machine slows both alike.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import torch
from transformers import DynamicCache

from harness.contract.decoder import Decoder, Row
from harness.measure.trace import Tracer
from harness.testing.tiny import tiny_decoder

ROUNDS = 300
VOCABULARY = 1000
PROMPT = 64
STEPS = 4
PREFILL_BUDGET, DECODE_BUDGET = 1.02, 1.10


def main() -> None:
    """Print the ratio for cached decode steps and for a prefill with the collection of its trace."""
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

    def prefill(tracer: Tracer | None) -> None:
        model.module(ids, logits_to_keep=1)
        if tracer is not None:
            tracer.collect()

    def decode(tracer: Tracer | None) -> None:
        for _ in range(STEPS):
            model.module(ids[:, :1], past_key_values=cache)

    def undo() -> None:
        cache.crop(-STEPS)

    with torch.inference_mode():
        model.module(ids, past_key_values=cache)
        report(f"prefill of {PROMPT} tokens", model, prefill, 0, lambda: None, PREFILL_BUDGET)
        report(f"{STEPS} decode steps after {PROMPT} tokens", model, decode, PROMPT, undo, DECODE_BUDGET)


def report(
    name: str,
    model: Decoder,
    forward: Callable[[Tracer | None], None],
    processed: int,
    after: Callable[[], None],
    budget: float,
) -> None:
    rows = [Row("text", 0, (0,), PROMPT, PROMPT)]
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(ROUNDS):
        for traced in (turn % 2 == 0, turn % 2 == 1):
            served = model.serving(rows, "generate", processed=processed)
            with Tracer(model) if traced else nullcontext() as tracer, served:
                start = time.thread_time()
                forward(tracer)
                times[traced].append(time.thread_time() - start)
                after()
    ratio = median(traced / bare for traced, bare in zip(times[True], times[False], strict=True))
    fastest = min(times[True]) / min(times[False])
    verdict = "within" if max(ratio, fastest) <= budget else "over"
    print(
        f"{name}: {min(times[False]) * 1e3:.2f} ms bare; traced over bare {ratio:.3f} by the median of pairs, "
        f"{fastest:.3f} by the fastest ({verdict} {budget})"
    )


if __name__ == "__main__":
    main()
