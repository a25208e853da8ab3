"""What each kernel takes of dense's time, by shape and number of tokens, and which is taken.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.kernel_choice --shapes 128x128 1024x1024 --dtypes float32 bfloat16

Shapes are outputs by inputs. It measures as a run does where nothing is kept yet, and keeps nothing.
"""

import argparse
import os
import time

import torch

from harness.core import environment
from harness.model.weights import block_sparse, int8, weight_only
from harness.model.weights.choice import decide, ratios
from harness.model.weights.computations import Computations, Layer
from harness.model.weights.formats import NumberFormat
from harness.model.weights.probe import TOKENS, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["128x128", "384x128", "1024x1024", "4096x1024"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--zeros", type=float, nargs="+", default=[0.5, 0.8])
    args = parser.parse_args()
    print(f"{environment.processor('cpu')}; {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    for dtype in args.dtypes:
        for shape in args.shapes:
            out, inputs = map(int, shape.split("x"))
            dense = Layer(out, inputs, dtype)
            show(dense, int8.computations(dense, "cpu"))
            for number in (NumberFormat(8), NumberFormat(4, 128, False, scale="float16")):
                show(dense, weight_only.computations(dense, "cpu", number))
            for zeros in args.zeros:
                layer = Layer(out, inputs, dtype, zeros, rows=16)
                show(layer, block_sparse.computations(layer, "cpu", "int8"))


def show(layer: Layer, ways: Computations) -> None:
    """Print a layer's table."""
    began = time.perf_counter()
    times = probe(ways, layer)
    decision = decide(ways, times)
    print(f"\n{layer.label}: {decision.kernel} (measured in {time.perf_counter() - began:.2f} s)")
    for kernel in ways.kernels:
        over_dense = "" if kernel.why_not else "  ".join(f"{ratio:6.2f}" for ratio in ratios(times, kernel))
        print(f"  {kernel.name:>38}  {over_dense or kernel.why_not}")
    print(f"  {'microseconds of dense':>38}  {'  '.join(f'{seconds * 1e6:6.0f}' for seconds in times['dense'])}")
    print(f"  {'tokens':>38}  {'  '.join(f'{tokens:6}' for tokens in TOKENS)}")


if __name__ == "__main__":
    main()
