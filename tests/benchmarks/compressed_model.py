"""Time of a whole model's prefill and decode steps under the compression methods, beside dense float32.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.compressed_model --layers 8 --width 1024 --prompt 256 --tokens 8

Each linear layer is computed by what is fastest for it here.
A random Llama with an MLP of four times its width, one row, greedy decoding with a cache. One thread, the thread's own
CPU time, the shortest of interleaved rounds.
"""

import argparse
import os
import time

import torch

from harness.contract.decoder import Decoder
from harness.contract.stack import parse
from harness.contract.study import Study
from harness.measure.shape import ModelShape
from harness.testing.tiny import tiny_decoder

METHODS = (
    "int8-weight-only",
    "int4-weight-only",
    "int8-dynamic",
    "block-sparse:sparsity=0.5",
    "block-sparse:sparsity=0.8",
    "block-sparse:sparsity=0.9",
    "block-sparse:sparsity=0.8,number=fp32",
    "block-sparse:sparsity=0.8,pattern=4x1",
)
TEXT = Study(("The keeper of the light wrote down every ship that passed, and its flag. " * 8,), "a sentence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("layers", 8), ("width", 1024), ("prompt", 256), ("tokens", 8), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "max_position_embeddings": 4096}
    model = tiny_decoder("llama", layers=args.layers, **sizes, num_attention_heads=16, num_key_value_heads=16)
    prompt = torch.randint(3, 259, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    methods = [parse(text.replace("block-sparse:", "block-sparse:samples=2,length=64,")).parts[0] for text in METHODS]
    states = [method.prepare(model, TEXT) for method in methods]
    dense = ModelShape.of(model).bytes
    times: dict[str, list[tuple[float, float]]] = {"dense": [], **{text: [] for text in METHODS}}
    shares = {"dense": 1.0}
    for _ in range(args.rounds):
        times["dense"].append(generate(model, prompt, args.tokens))
        for text, method, state in zip(METHODS, methods, states, strict=True):
            with method.attach(model, state):
                times[text].append(generate(model, prompt, args.tokens))
                shares[text] = ModelShape.of(model).bytes / dense
    print(f"{args.layers} layers of width {args.width}, prompt {args.prompt}, load {os.getloadavg()[0]:.1f}")
    best = {name: tuple(map(min, zip(*found, strict=True))) for name, found in times.items()}
    for name, (prefill, step) in best.items():
        print(
            f"{name:>42}: prefill {prefill * 1e3:8.1f} ms {best['dense'][0] / prefill:5.2f}x   "
            f"decode {step * 1e3:7.2f} ms/token {best['dense'][1] / step:5.2f}x   bytes {shares[name]:.3f}x"
        )


@torch.inference_mode()
def generate(model: Decoder, prompt: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Seconds of the prefill and of a mean decode step; a short warm-up first."""
    model.module(prompt[:, :8])
    started = time.thread_time()
    output = model.module(prompt, use_cache=True)
    read = time.thread_time()
    for _ in range(tokens):
        following = output.logits[:, -1:].argmax(-1)
        output = model.module(following, past_key_values=output.past_key_values, use_cache=True)
    return read - started, (time.thread_time() - read) / tokens


if __name__ == "__main__":
    main()
