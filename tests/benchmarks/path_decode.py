"""Time of a decode step against the share of layers executed, at one row; and what the identity path costs.

    python -m tests.benchmarks.path_decode --layers 16 --width 1024 --prompt 64 --tokens 16 --rounds 7

A random Llama of 200 million parameters or more. Dense, the identity path and paths with a quarter and a half of the
layers fewer take turns; the shortest of the rounds counts, in seconds of this thread. The ideal saving is the share of
layers left out.
"""

import argparse
import time
from contextlib import nullcontext
from typing import Any

import torch

from harness.contract.decoder import Decoder
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.testing.tiny import tiny_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 16, "width": 1024, "prompt": 64, "tokens": 16, "rounds": 7}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = {"hidden_size": args.width, "intermediate_size": 3 * args.width, "max_position_embeddings": 512}
    model = tiny_decoder("llama", layers=args.layers, **config, num_attention_heads=16, num_key_value_heads=16)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    print(f"{args.layers} layers of width {args.width}, {parameters / 1e6:.0f} million parameters, batch 1")
    ways: dict[str, Any] = {"dense": nullcontext}
    for share in (0.0, 0.25, 0.5):
        out = {round((i + 0.5) / (share * args.layers) * args.layers) for i in range(int(share * args.layers))}
        path = tuple(int(layer not in out) for layer in range(args.layers))
        ways[f"{share:.0%} fewer"] = lambda path=path: routed(model, FixedPaths((path,)))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, attach in ways.items():
            with attach():
                times[name].append(decode(model, args.prompt, args.tokens))
    best = {name: min(found) for name, found in times.items()}
    for name, seconds in best.items():
        ratio = seconds / best["dense"]
        ideal = float(name.partition("%")[0]) / 100 if name != "dense" else 0.0
        reached = f", {(1 - ratio) / ideal:.0%} of the ideal saving" if ideal else ""
        print(f"{name:>10}: {seconds * 1e3:7.2f} ms/token, {ratio:.3f} of dense{reached}")


@torch.no_grad()
def decode(model: Decoder, prompt: int, tokens: int) -> float:
    """Seconds of a mean decode step."""
    ids = torch.randint(3, 259, (1, prompt), generator=torch.Generator().manual_seed(0))
    output = model.module(ids, use_cache=True)
    started = time.thread_time()
    for _ in range(tokens):
        following = output.logits[:, -1:].argmax(-1)
        output = model.module(following, past_key_values=output.past_key_values, use_cache=True)
    return (time.thread_time() - started) / tokens


if __name__ == "__main__":
    main()
