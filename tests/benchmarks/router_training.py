"""Memory and time of training Dr.LLM's routers at the paper's size, on features of random numbers.

    python -m tests.benchmarks.router_training --samples 4000 --layers 28 --width 3072 --epochs 1

Resident memory of the whole process at its peak, in GB (10^9 bytes); the features are kept in bfloat16, as those of a
model in that precision are.
"""

import argparse
import resource
import time

import torch

from harness.methods.routing.features import Examples
from harness.methods.routing.training import Recipe, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("samples", 4000), ("layers", 28), ("width", 3072), ("windows", 8), ("epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(args.samples, args.windows, args.width, generator=generator).bfloat16()
    features = [one.clone() for _ in range(args.layers)]
    labels = torch.randint(0, 3, (args.samples, args.layers), generator=generator)
    examples = Examples(features, torch.full((args.samples,), args.windows), labels)
    started = time.process_time()
    train(examples, torch.arange(args.samples), Recipe(epochs=args.epochs), seed=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{args.samples} samples, {args.layers} layers of width {args.width}, {args.epochs} epochs: ", end="")
    print(f"peak {peak / 1e9:.2f} GB resident, {time.process_time() - started:.0f} s of processor time")


if __name__ == "__main__":
    main()
