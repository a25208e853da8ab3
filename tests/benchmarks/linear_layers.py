"""Time of one linear layer by the first kernel that runs here, beside torch's dense product in float32.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.linear_layers --out 4096 --in 1024 --rounds 9
    OMP_NUM_THREADS=1 python -m tests.benchmarks.linear_layers --cold 64 --tokens 1

One thread, the thread's own CPU time, the shortest of interleaved rounds: other work only ever adds time.
With ``--cold`` each call takes the next of so many copies of the weights, as a model's layers do, so that a single
token finds them in memory and not in a cache; give enough that they exceed the last cache.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from harness.model.weights import block_sparse, int8
from harness.model.weights.computations import Layer as Shape

Layer = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("out", 4096), ("in", 1024), ("rounds", 9), ("cold", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 32, 128, 512])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.out} x {vars(args)['in']}, 1 thread, {args.cold} copies, load {os.getloadavg()[0]:.1f}")
    compared = kinds(args.out, vars(args)["in"], args.sparsity)
    layers = {name: [make() for _ in range(args.cold)] for name, make in compared}
    for tokens in args.tokens:
        x = torch.randn(tokens, vars(args)["in"], generator=torch.Generator().manual_seed(0))
        best = shortest(layers, x, args.rounds)
        dense, int8 = best["fp32 dense"], best["int8 dense"]
        print(f"\n{tokens} tokens: float32 dense {dense * 1e3:.3f} ms")
        for name, seconds in best.items():
            print(f"  {name:>18}: {seconds * 1e3:8.3f} ms  {dense / seconds:6.1f}x fp32  {int8 / seconds:5.1f}x int8")


def kinds(out: int, inputs: int, sparsities: Sequence[float]) -> list[tuple[str, Callable[[], Layer]]]:
    """What is compared, by name; each call makes one more copy."""

    def weight() -> torch.Tensor:
        return torch.randn(out, inputs) / 32

    def dense() -> Layer:
        fixed = weight()
        return lambda x: linear(x, fixed)

    def half() -> Layer:
        fixed = weight().bfloat16()
        return lambda x: linear(x.bfloat16(), fixed).float()

    def sparse(rows: int, number: str, sparsity: float) -> Layer:
        kept = torch.rand(out // rows, inputs) >= sparsity
        shape = Shape(out, inputs, "float32", sparsity, rows)
        kernel = block_sparse.computations(shape, "cpu", number).able[0]  # type: ignore[arg-type]
        return kernel.make(weight() * kept.repeat_interleave(rows, 0), None)

    compared: list[tuple[str, Callable[[], Layer]]] = [
        ("fp32 dense", dense),
        ("bf16 dense", half),
        ("int8 dense", lambda: int8.computations(Shape(out, inputs, "float32"), "cpu").able[0].make(weight(), None)),
    ]
    for number in ("int8", "fp32"):
        for rows in (16, 4):
            for sparsity in sparsities:
                name = f"{number} {rows}x1 {sparsity:.0%}"
                compared.append((name, lambda r=rows, n=number, s=sparsity: sparse(r, n, s)))  # type: ignore[misc]
    return compared


@torch.inference_mode()
def shortest(layers: dict[str, list[Layer]], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each; with several copies, of the fastest mean over all of them."""
    best = dict.fromkeys(layers, float("inf"))
    for copies in layers.values():
        copies[0](x)  # the first call of a shape sets things up
    for _ in range(rounds):
        for name, copies in layers.items():
            started = time.thread_time()
            for copy in copies:
                copy(x)
            best[name] = min(best[name], (time.thread_time() - started) / len(copies))
    return best


if __name__ == "__main__":
    main()
