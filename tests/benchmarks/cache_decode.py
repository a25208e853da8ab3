"""What a decode step takes of a cache of which a part is gone or rounded, beside torch's dense attention in one run.

    python -m tests.benchmarks.cache_decode --heads 16 --width 64 --keep 0.25 --rounds 15

One query for each head, keys and values of a random text, through the layers of the cache that the methods use. Dense,
evicted and rounded are interleaved, and the shortest of the rounds is taken: other work on the machine only ever adds
time. "product" is attention alone; "step" is the new token's way into the cache too, which copies what is there, in
dense as in the others, and turns codes into numbers.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.measure.cache import bytes_of
from harness.model.cache.layers import FullLayer
from harness.model.cache.rounded_layer import RoundedLayer, Rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"{args.heads} heads of width {args.width}, {torch.get_num_threads()} threads, {args.keep:.0%} kept")
    for context in args.contexts:
        compare(context, args)


@torch.no_grad()
def compare(context: int, args: argparse.Namespace) -> None:
    """Print the times of a step, and the bytes of the layer, at one context."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, args.heads, context, args.width)
    keys, values = (torch.randn(shape, generator=generator) for _ in range(2))
    query, key, value = (torch.randn(1, args.heads, 1, args.width, generator=generator) for _ in range(3))
    layers = {"dense": FullLayer(), "evicted": FullLayer()}
    layers |= {f"{bits} bits": RoundedLayer(Rounding(bits, 32, 128)) for bits in (8, 4, 2)}
    for layer in layers.values():
        layer.update(keys, values)
    kept = torch.rand(1, args.heads, context, generator=generator).topk(round(args.keep * context)).indices
    layers["evicted"].keep(kept.sort().values)
    for layer in layers.values():
        if isinstance(layer, RoundedLayer):
            layer.round(None)

    def product(layer: FullLayer) -> Callable[[], object]:
        return lambda: scaled_dot_product_attention(query, layer.keys, layer.values)

    def step(layer: FullLayer) -> Callable[[], object]:
        def run() -> None:
            before = layer.keys, layer.values, layer.positions, layer.seen
            scaled_dot_product_attention(query, *layer.update(key, value))
            layer.keys, layer.values, layer.positions, layer.seen = before

        return run

    times = timed({name: product(layer) for name, layer in layers.items() if "bits" not in name}, args.rounds)
    steps = timed({name: step(layer) for name, layer in layers.items()}, args.rounds)
    for name, layer in layers.items():
        alone = f"product {times[name] * 1e3:7.2f} ms {times['dense'] / times[name]:5.2f}x, " if name in times else ""
        share = bytes_of(layer) / bytes_of(layers["dense"])
        print(
            f"{context:6} {name:>7}: {alone:30}step {steps[name] * 1e3:7.2f} ms "
            f"{steps['dense'] / steps[name]:5.2f}x, {share:6.1%} of the bytes"
        )


def timed(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each, interleaved; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(each[1:]) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
