"""What early exit saves at decode, and what its checks and fills cost: time of a step beside the counted FLOPs.

    python -m tests.benchmarks.early_exit_decode --layers 12 --width 512 --prompt 128 --tokens 32 --rounds 7

A random Llama of a quarter as many key-value heads as heads, one row, greedy decoding with a cache. Exits are put where
the benchmark wants them: after a share of the layers for every token; or nowhere, so that the checks alone are paid.
All are interleaved, and the shortest of the rounds is taken: other work on the machine only ever adds time. Thread
time on one thread.
"""

import argparse
import time

import torch

from harness.contract.decoder import Decoder, Row
from harness.contract.method import Method
from harness.contract.prepared import Prepared
from harness.measure.flops import Flops, executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.methods.dense import Dense
from harness.methods.early_exit.calm import Calm
from harness.methods.early_exit.mue import MuE
from harness.testing.tiny import tiny_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"layers": 12, "width": 512, "vocabulary": 32000, "prompt": 128, "tokens": 32, "rounds": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape = {"hidden_size": args.width, "intermediate_size": 4 * args.width, "max_position_embeddings": 4096}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": args.vocabulary}
    model = tiny_decoder("llama", layers=args.layers, **shape, **heads)
    prompt = torch.randint(3, 259, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    states = {name: (method, state(method, model)) for name, method in settings(args.layers).items()}
    times: dict[str, list[float]] = {name: [] for name in states}
    for _ in range(args.rounds):
        for name, (method, prepared) in states.items():
            with method.attach(model, prepared):
                times[name].append(generate(model, prompt, args.tokens))
    print(f"{args.layers} layers of width {args.width}, {args.vocabulary} tokens, prompt {args.prompt}")
    dense = min(times["dense"])
    for name, (method, prepared) in states.items():
        with method.attach(model, prepared):
            flops = counted(model, prompt, args.tokens)
        if name == "dense":
            whole = flops.total
        parts = {"fills": flops.extra.get("fill", 0), "classifiers": flops.extra.get("exit", 0), "head": flops.head}
        shares = ", ".join(f"{part} {work / whole:.1%}" for part, work in parts.items())
        best = min(times[name])
        print(
            f"{name:>26}: {best * 1e3:6.2f} ms/token, {best / dense:.2f}x (FLOPs {flops.total / whole:.2f}x; {shares})"
        )


def settings(layers: int) -> dict[str, Method]:
    """What is timed. A cosine of at least -1 is always reached, and a margin of 0.9999 never by a random model."""
    exits = {f"exit after {share:.0%}": MuE(threshold=-1, start=share) for share in (0.25, 0.5, 0.75)}
    never = {"threshold": 0.9999, "decay": 0}
    checks = {
        "cosine in every layer": MuE(threshold=0.9999, start=0),
        "head in every fourth layer": Calm(**never, every=4),
        "head in every layer": Calm(**never, every=1),
    }
    return {"dense": Dense(), **exits, **checks}


def state(method: Method, model: Decoder) -> Prepared:
    """What ``prepare`` finds where nothing is calibrated."""
    from harness.contract.study import Study

    return method.prepare(model, Study((), "nothing"))


@torch.no_grad()
def generate(model: Decoder, prompt: torch.Tensor, tokens: int) -> float:
    """Seconds of a mean decode step."""
    output = model.module(prompt, use_cache=True)
    started = time.thread_time()
    for _ in range(tokens):
        following = output.logits[:, -1:].argmax(-1)
        output = model.module(following, past_key_values=output.past_key_values, use_cache=True)
    return (time.thread_time() - started) / tokens


def counted(model: Decoder, prompt: torch.Tensor, tokens: int) -> Flops:
    """FLOPs of all decode steps, from the trace."""
    length = prompt.shape[1]
    with Tracer(model) as tracer, model.serving([Row("", 0, (0,), length, length)], "generate"):
        generate(model, prompt, tokens)
        (segments,) = tracer.collect()
    return executed_flops(ModelShape.of(model), [segment for segment in segments if segment.phase == "decode"])


if __name__ == "__main__":
    main()
