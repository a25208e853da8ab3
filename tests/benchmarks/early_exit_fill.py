"""What exact keys and values are worth: the bundled model's loss when every other token exits, filled and copied.

    python -m tests.benchmarks.early_exit_fill --exit 4 --windows 8

Decoding of the bundled text, token by token. Every second token after the first half exits after the given number of
layers; the loss is that of the tokens between, which run all layers and look back at those that exited. The copy is
what MuE's released code does: the exit layer's keys and values for all deeper layers.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contract.decoder import Decoder
from harness.model.layouts import dissect
from harness.model.tokens.token_depth import TokenPolicy, Tokens, token_depth
from harness.tasks.pocket import text

MODEL = Path(text.__file__).parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("exit", 4), ("windows", 8), ("length", 96)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(1)
    module = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = Decoder(module, tokenizer, dissect(module), "pocket")
    tokens = tokenizer("\n\n".join(text.train_texts()), add_special_tokens=False)["input_ids"]
    ids = torch.tensor(tokens[: args.windows * args.length]).view(args.windows, args.length)
    kinds = {
        "all layers": nullcontext(),
        "exits, keys and values projected": token_depth(model, EveryOther(args.exit)),
        "exits, keys and values copied": copied(model, args.exit),
    }
    for name, attached in kinds.items():
        with attached:
            print(f"{name:>34}: loss {loss(model, ids):.4f} nats a token")


class EveryOther(TokenPolicy):
    """Written tokens exit after some layers, every second one."""

    def __init__(self, depth: int) -> None:
        self.depth = depth

    def begin(self, tokens: Tokens) -> None:
        step = int(tokens.steps.max())
        self.leaves = torch.full_like(tokens.predicting, step % 2 == 1)

    def runs(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        return ~self.leaves if layer >= self.depth else torch.ones_like(self.leaves)


@contextmanager
def copied(model: Decoder, depth: int) -> Iterator[None]:
    """The same exits, with the exit layer's keys and values in all deeper layers of the cache."""
    policy = EveryOther(depth)

    def copy(module: torch.nn.Module, args: object, output: object) -> None:
        if policy.leaves.all():
            exit_layer, *deeper = output.past_key_values.layers[depth - 1 :]
            for layer in deeper:
                layer.keys[:, :, -1], layer.values[:, :, -1] = exit_layer.keys[:, :, -1], exit_layer.values[:, :, -1]

    handle = model.module.register_forward_hook(copy)
    try:
        with token_depth(model, policy):
            yield
    finally:
        handle.remove()


@torch.no_grad()
def loss(model: Decoder, ids: torch.Tensor) -> float:
    """Mean loss of what the tokens that run all layers predict in the second half of each window."""
    prompt = ids.shape[1] // 2
    output = model.module(ids[:, :prompt], use_cache=True)
    losses = []
    for place in range(prompt, ids.shape[1] - 1):
        output = model.module(ids[:, place : place + 1], past_key_values=output.past_key_values, use_cache=True)
        if (place - prompt) % 2 == 1:  # the steps count from 1 at the first token after the prompt
            losses.append(cross_entropy(output.logits[:, -1], ids[:, place + 1]))
    return float(torch.stack(losses).mean())


if __name__ == "__main__":
    main()
