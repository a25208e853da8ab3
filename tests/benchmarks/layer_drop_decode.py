"""What layer drop saves: time of a decode step and of a prefill, beside the FLOPs counted from what ran.

    python -m tests.benchmarks.layer_drop_decode --layers 12 --width 512 --prompt 128 --tokens 32 --rounds 7

A random Llama, one row, greedy decoding with a cache. Dense and dropped are interleaved, and the shortest of the
rounds is taken: other work on the machine only ever adds time.
"""

import argparse
import time
from contextlib import nullcontext
from typing import Any

import torch

from harness.contract.decoder import Decoder, Row
from harness.contract.prepared import Prepared
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.methods.pruning.layer_drop import LayerDrop
from harness.testing.tiny import tiny_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 12), ("width", 512), ("prompt", 128), ("tokens", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    shape = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "max_position_embeddings": 4096}
    model = tiny_decoder("llama", layers=args.layers, **shape, num_attention_heads=8, num_key_value_heads=8)
    prompt = torch.randint(3, 259, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    half = tuple(range(1, args.layers, 2))
    attached: dict[str, Any] = {"dense": lambda: nullcontext()}
    for unit in ("attention", "mlp", "block"):
        method = LayerDrop(unit=unit, layers=half)
        attached[unit] = lambda method=method: method.attach(model, state(method))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in attached}
    work = {}
    for _ in range(args.rounds):
        for name, attach in attached.items():
            with attach():
                times[name].append(generate(model, prompt, args.tokens))
    for name, attach in attached.items():
        with attach():
            work[name] = counted(model, prompt, args.tokens)
    print(f"{args.layers} layers of width {args.width}, prompt {args.prompt}, {args.tokens} tokens; half of the layers")
    best = {name: tuple(min(column) for column in zip(*found, strict=True)) for name, found in times.items()}
    for name in attached:
        ratios = [value / dense for value, dense in zip(best[name], best["dense"], strict=True)]
        flops = [value / dense for value, dense in zip(work[name], work["dense"], strict=True)]
        print(
            f"{name:>9}: prefill {best[name][0] * 1e3:7.2f} ms, {ratios[0]:.3f}x (FLOPs {flops[0]:.3f}x); "
            f"decode {best[name][1] * 1e3:6.2f} ms/token, {ratios[1]:.3f}x (FLOPs {flops[1]:.3f}x)"
        )


def state(method: LayerDrop) -> Prepared:
    """What ``prepare`` finds where the layers are given."""
    return Prepared(facts={"dropped": [[method.unit, layer] for layer in method.layers]})


@torch.no_grad()
def generate(model: Decoder, prompt: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Seconds of the prefill and of a mean decode step."""
    started = time.perf_counter()
    output = model.module(prompt, use_cache=True)
    read = time.perf_counter()
    for _ in range(tokens):
        following = output.logits[:, -1:].argmax(-1)
        output = model.module(following, past_key_values=output.past_key_values, use_cache=True)
    return read - started, (time.perf_counter() - read) / tokens


def counted(model: Decoder, prompt: torch.Tensor, tokens: int) -> tuple[int, int]:
    """FLOPs of the prefill and of all decode steps, from the trace."""
    length = prompt.shape[1]
    with Tracer(model) as tracer, model.serving([Row("", 0, (0,), length, length)], "generate"):
        generate(model, prompt, tokens)
        (segments,) = tracer.collect()
    shape = ModelShape.of(model)

    def flops(phase: str) -> int:
        return executed_flops(shape, [segment for segment in segments if segment.phase == phase]).total

    return flops("prefill"), flops("decode")


if __name__ == "__main__":
    main()
