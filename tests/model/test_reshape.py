"""What is narrowed computes what the dense model computes with those units multiplied by zero, and all comes back."""

from contextlib import contextmanager, suppress

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.reshape import Keep, heads_of, narrowed
from harness.model.surgery import without_blocks, without_branches
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.model.conftest import USUAL, usual
from tests.model.dropping import assert_same, logits, snapshot

SHARED_NORMS = ("olmo2",)
"""Families whose norms are over all heads together, of which none can go."""


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@contextmanager
def masked(decoder, keeps):
    """A reference that shares nothing with the engine: the columns that read units that go, set to zero."""
    saved = []
    for layer, keep in keeps.items():
        block = decoder.anatomy.blocks[layer]
        config = decoder.config
        heads = config.num_attention_heads
        per_group = heads // (getattr(config, "num_key_value_heads", None) or heads)
        gone = set()
        if keep.groups is not None:
            gone |= {head for head in range(heads) if head // per_group not in keep.groups}
        if keep.heads is not None:
            gone |= set(range(heads)) - set(keep.heads)
        cuts = [(block.roles["output"].module, gone, heads)]
        if keep.neurons is not None:
            down = block.roles["down"].module
            size = down.nx if isinstance(down, Conv1D) else down.in_features
            cuts.append((down, set(range(size)) - set(keep.neurons), size))
        for linear, units, count in cuts:
            weight = linear.weight.data
            saved.append((weight, weight.clone()))
            columns = weight if isinstance(linear, Conv1D) else weight.T  # [in, out]
            columns.view(count, -1, columns.shape[1])[sorted(units)] = 0
    yield
    for weight, values in saved:
        weight.copy_(values)



def drawn(decoder, seed):
    """Random units of two layers, different widths in each, and one of all."""
    generator = torch.Generator().manual_seed(seed)
    layouts = heads_of(decoder, 0) if decoder.config.model_type not in SHARED_NORMS else None

    def some(count, kept):
        return torch.randperm(count, generator=generator)[:kept].tolist()

    neurons = decoder.anatomy.blocks[0].roles["down"].module
    size = neurons.nx if isinstance(neurons, Conv1D) else neurons.in_features
    keeps = {0: Keep(neurons=some(size, 17)), 1: Keep(neurons=some(size, 1)), 3: Keep(neurons=some(size, size - 3))}
    if layouts is None:
        return keeps
    groups = some(layouts.groups, layouts.groups // 2)
    heads = [group * layouts.per_group + some(layouts.per_group, 1)[0] for group in groups]
    keeps[1] = Keep(neurons=keeps[1].neurons, groups=groups)
    keeps[2] = Keep(heads=heads, groups=groups)
    every = range(layouts.groups)
    keeps[3] = Keep(neurons=keeps[3].neurons, heads=[g * layouts.per_group for g in every][-2:], groups=list(every)[-2:])
    return keeps


@pytest.mark.parametrize("seed", [0, 1])
@usual
def test_narrowed_equals_masked(decoder, ids, seed):
    dense = logits(decoder, ids)
    keeps = drawn(decoder, seed)
    with masked(decoder, keeps):
        expected = logits(decoder, ids)
    with narrowed(decoder, keeps):
        close(logits(decoder, ids), expected)
    assert (expected - dense).abs().max() > 1e-2
