"""Peak resident memory of preparing a method on a random Llama, beside the model's own size.

    python -m tests.benchmarks.calibration_memory --layers 16 --width 2048 --method wanda:samples=32,length=512

The default is a model of 1.07 billion parameters.
"""

import argparse
import gc
import time

import torch

from harness.contract.stack import parse
from harness.contract.study import Study
from harness.measure.memory import peak_memory
from harness.measure.shape import ModelShape
from harness.testing.tiny import tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 400,), "a sentence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--method", default="wanda:samples=4,length=256")
    args = parser.parse_args()
    sizes = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "max_position_embeddings": 2048}
    model = tiny_decoder("llama", layers=args.layers, **sizes, num_attention_heads=16, num_key_value_heads=16)
    gc.collect()
    (method,) = parse(args.method).parts
    started = time.perf_counter()
    peak = peak_memory(lambda: method.prepare(model, TEXT), torch.device("cpu"))
    if peak is None:
        raise SystemExit("this system does not tell a process's peak memory")
    shape = ModelShape.of(model)
    print(
        f"{shape.parameters / 1e9:.2f} billion parameters, {shape.bytes / 2**30:.2f} GiB: {args.method} took "
        f"{time.perf_counter() - started:.0f} s; {peak.before / 2**30:.2f} GiB before, {peak.peak / 2**30:.2f} GiB peak"
    )


if __name__ == "__main__":
    main()
