"""Time of one linear layer by the project's kernels, beside torch's dense product in float32, in one run.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.linear_layers --shapes 2048x2048 4096x1024
    OMP_NUM_THREADS=1 HARNESS_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 \
        python -m tests.benchmarks.linear_layers --tokens 1 32 128

Shapes are outputs by inputs. One thread, the thread's own CPU time, the shortest of interleaved rounds: other work only
ever adds time. Up to eight tokens meet cold weights: each call takes the next of so many copies that together they
exceed the last cache, as a model's layers do. GB/s are of the weights as the kernel reads them: torch's float32 product
is weak at two to eight tokens, so that a ratio alone flatters there.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear

from harness.core import environment
from harness.model.weights import block_sparse, int8, weight_only
from harness.model.weights.computations import Computations
from harness.model.weights.computations import Layer as Shape
from harness.model.weights.formats import NumberFormat
from harness.model.weights.linear import ReplacementLayer

FEW = 8
"""Up to so many tokens weights are cold."""

Layer = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["2048x2048", "4096x1024"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cold", type=int, default=112, help="megabytes of copies, more than the last cache")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 32, 128])
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.7, 0.8, 0.9])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment.processor('cpu')}; 1 thread, load {os.getloadavg()[0]:.1f}")
    for shape in args.shapes:
        out, inputs = map(int, shape.split("x"))
        for name, make in kinds(out, inputs, args.sparsity).items():
            show(shape, name, make, inputs, args)


def show(shape: str, name: str, make: Callable[[], Layer], inputs: int, args: argparse.Namespace) -> None:
    """Print a kind's line: by number of tokens, times as fast as float32, milliseconds and GB/s."""
    out = int(shape.partition("x")[0])
    first = make()
    size = getattr(first, "weight_bytes", 4 * out * inputs)
    copies = [first] + [make() for _ in range(args.cold * 10**6 // size)]
    dense = [dense_layer(out, inputs) for _ in range(1 + args.cold * 10**6 // (4 * out * inputs))]
    cells: list[str] = []
    for tokens in args.tokens:
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(0))
        cold = tokens <= FEW
        layers = {"dense": dense if cold else dense[:1], name: copies if cold else copies[:1]}
        best = shortest(layers, x, args.rounds)
        seconds = best[name]
        ratio = best["dense"] / seconds
        cells.append(f"{tokens}: {ratio:6.2f}x {seconds * 1e3:7.3f} ms {size / seconds / 1e9:5.1f} GB/s")
    print(f"{shape:>10} {name:>14}: {' | '.join(cells)}", flush=True)


def dense_layer(out: int, inputs: int) -> Layer:
    """Torch's product in float32."""
    weight = torch.randn(out, inputs) / 32
    return lambda x: linear(x, weight)


def kinds(out: int, inputs: int, sparsities: Sequence[float]) -> dict[str, Callable[[], Layer]]:
    """What is compared, by name; each call makes one more copy."""

    def own(ways: Computations, kept: torch.Tensor | None = None) -> ReplacementLayer:
        weight = torch.randn(out, inputs) / 32
        kernel = next(each for each in ways.able if not each.name.startswith(("torch", "onednn")))
        return kernel.make(weight if kept is None else weight * kept, None)

    def sparse(rows: int, number: str, sparsity: float) -> Layer:
        kept = (torch.rand(out // rows, inputs) >= sparsity).repeat_interleave(rows, 0)
        layer = Shape(out, inputs, "float32", sparsity, rows)
        return own(block_sparse.computations(layer, "cpu", number), kept)  # type: ignore[arg-type]

    layer = Shape(out, inputs, "float32")
    int4 = NumberFormat(4, 128, symmetric=False, scale="float16")
    compared: dict[str, Callable[[], Layer]] = {
        "fp32 dense": lambda: dense_layer(out, inputs),
        "int8 by int8": lambda: own(int8.computations(layer, "cpu")),
        "int8 weights": lambda: own(weight_only.computations(layer, "cpu", NumberFormat(8))),
        "int4 weights": lambda: own(weight_only.computations(layer, "cpu", int4)),
    }
    for number in ("int8", "fp32"):
        for rows in (16, 4):
            for sparsity in sparsities:
                name = f"{number} {rows}x1 {sparsity:.0%}"
                compared[name] = lambda r=rows, n=number, s=sparsity: sparse(r, n, s)  # type: ignore[misc]
    return compared


@torch.inference_mode()
def shortest(layers: dict[str, list[Layer]], x: torch.Tensor, rounds: int) -> dict[str, float]:
    """Seconds of the fastest mean over all copies of each."""
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
