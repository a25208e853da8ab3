"""A reference for early exit that shares nothing with the engine: hooks that mask every layer, without a cache."""

from contextlib import contextmanager

import torch
from torch.nn.functional import cosine_similarity

from harness.contract.study import Study
from harness.testing.serve import TEXTS, generate, identical, score

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 12,), "a sentence")


@contextmanager
def leaving(decoder, prompt, sure, hits=1):
    """Compute every layer for all tokens; a token that has left keeps its state.

    ``sure(layer, before, after)`` says, for states of shape [rows, tokens, width], who may leave after a layer. Of
    each row, tokens from the last one of the prompt on may. Yields the layers run by each token, [rows, tokens].
    """
    handles, depth = [], {}

    def watch(block):
        def choose(module, args, kwargs, output):
            before = args[0] if args else kwargs["hidden_states"]
            first = output[0] if isinstance(output, tuple) else output
            if block.index == 0:
                depth["gone"] = torch.zeros(before.shape[:2], dtype=torch.bool)
                depth["streak"] = torch.zeros(before.shape[:2], dtype=torch.long)
                depth["ran"] = torch.zeros(before.shape[:2], dtype=torch.long)
            gone = depth["gone"]
            depth["ran"] = depth["ran"] + ~gone
            after = torch.where(gone[..., None], before, first)
            verdict = sure(block.index, before, after)
            if verdict is not None:
                depth["streak"] = torch.where(verdict, depth["streak"] + 1, 0)
                may = torch.arange(before.shape[1]) >= prompt - 1
                depth["gone"] = gone | (may & (depth["streak"] >= hits))
            return (after, *output[1:]) if isinstance(output, tuple) else after

        return block.module.register_forward_hook(choose, with_kwargs=True)

    handles = [watch(block) for block in decoder.anatomy.blocks]
    try:
        yield depth
    finally:
        for handle in handles:
            handle.remove()


def cosine(before, after):
    return cosine_similarity(before.double(), after.double(), dim=-1)


@torch.no_grad()
def written(decoder, tokens):
    """Logits of every token of a text, from one forward without a cache."""
    return decoder.module(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def assert_dense(decoder, method):
    """Attached, the method scores and writes what the model does, bit for bit, by the same work."""
    dense = score(decoder, TEXTS[:2]), generate(decoder, TEXTS[:2])
    with method.attach(decoder, method.prepare(decoder, TEXT)):
        ours = score(decoder, TEXTS[:2]), generate(decoder, TEXTS[:2])
    for mine, theirs in zip(ours, dense, strict=True):
        assert identical(mine, theirs)
        assert mine.segments == theirs.segments


def depths(segments):
    """Layers run in each decode step of a generation, from its trace."""
    return [
        sum(segment.attention) for segment in segments if segment.phase == "decode" for _ in range(segment.forwards)
    ]
