"""Peak resident memory of preparing a method on a random Llama, with progress and the time left.

    python -m tests.benchmarks.calibration_memory --layers 16 --width 2048 --method gptq:samples=4,length=512

The default is a model of 1.07 billion parameters. One layer's second moments are in memory at a time, so a method's
``layers=0/15`` shows nearly the peak in less time; the state of the other layers is added to it.
"""

import argparse
import gc
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from harness.cli.display import Reporter
from harness.contract.preparation import Preparation
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study, Workbench
from harness.measure.memory import peak_memory
from harness.measure.shape import ModelShape
from harness.testing import tiny

TEXT = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 400,), "a sentence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--method", default="wanda:samples=4,length=256")
    args = parser.parse_args()
    sizes = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "max_position_embeddings": 2048}
    model = tiny.tiny_decoder("llama", layers=args.layers, **sizes, num_attention_heads=16, num_key_value_heads=16)
    tiny._MADE.clear()  # what further copies would be made of is as large as the model
    gc.collect()
    (method,) = parse(args.method).parts
    reporter = Reporter()
    study = replace(TEXT, workbench=Workbench(say=reporter.say, bar=reporter.bar))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        preparation = Preparation(States(Path(folder)), study, reporter.say)
        peak = peak_memory(lambda: preparation.state(method, model), torch.device("cpu"))
    if peak is None:
        raise SystemExit("this system does not tell a process's peak memory")
    shape = ModelShape.of(model)
    print(
        f"{shape.parameters / 1e9:.2f} billion parameters, {shape.bytes / 2**30:.2f} GiB: {args.method} took "
        f"{time.perf_counter() - started:.0f} s; {peak.before / 2**30:.2f} GiB before, {peak.peak / 2**30:.2f} GiB peak"
    )


if __name__ == "__main__":
    main()
