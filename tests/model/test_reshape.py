"""What is narrowed computes what the dense model computes with those units multiplied by zero, and all comes back."""

import random
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.contract.decoder import Row
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.audit import count_flops
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.reshape import Keep, narrowed
from harness.model.surgery import without_blocks, without_branches
from harness.model.units import Heads, heads_of
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import usual
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
        heads = decoder.config.num_attention_heads
        attention = block.attention.modules[0]
        if getattr(attention, "new_decoder_architecture", False):  # Falcon's
            per_group = heads // attention.num_kv_heads
        else:
            per_group = getattr(attention, "num_key_value_groups", 1)
        gone = set()
        if keep.groups is not None:
            gone |= {head for head in range(heads) if head // per_group not in keep.groups}
        if keep.heads is not None:
            gone |= set(range(heads)) - set(keep.heads)
        cuts = [(block.roles["output"].module, gone, heads)] if gone else []
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


def neuron_count(decoder):
    down = decoder.anatomy.blocks[0].roles["down"].module
    return down.nx if isinstance(down, Conv1D) else down.in_features


def drawn(decoder, seed):
    """Random units, other widths in each layer; layer 2 keeps one head of every group, where it has them."""
    draw, neurons = random.Random(seed), neuron_count(decoder)
    keeps = {layer: Keep(neurons=draw.sample(range(neurons), kept)) for layer, kept in enumerate((17, 5, neurons - 3))}
    if decoder.config.model_type in SHARED_NORMS:
        return keeps
    dense = heads_of(decoder, 0)
    groups = draw.sample(range(dense.groups), dense.groups // 2)
    heads = [group * dense.per_group + draw.randrange(dense.per_group) for group in range(dense.groups)]
    chosen = [head for head in heads if head // dense.per_group in groups]
    return {
        0: keeps[0],
        1: Keep(neurons=keeps[1].neurons, groups=groups),
        2: Keep(neurons=keeps[2].neurons, heads=heads if dense.per_group > 1 else chosen),
        3: Keep(heads=chosen, groups=groups),
    }


@pytest.mark.parametrize("seed", [0, 1])
@usual
def test_narrowed_equals_masked(decoder, ids, seed):
    dense, keeps = logits(decoder, ids), drawn(decoder, seed)
    with masked(decoder, keeps):
        expected = logits(decoder, ids)
    with narrowed(decoder, keeps):
        close(logits(decoder, ids), expected)
        weights = [weight for block in decoder.anatomy.blocks for weight in block.module.parameters()]
        assert all(weight.is_contiguous() and weight.untyped_storage().size() == weight.nbytes for weight in weights)
    assert (expected - dense).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_eager_attention_too(family, ids):
    decoder = tiny_decoder(family, attention="eager")
    keeps = drawn(decoder, 2)
    with masked(decoder, keeps):
        expected = logits(decoder, ids)
    with narrowed(decoder, keeps):
        close(logits(decoder, ids), expected)


@usual
def test_generation_with_padding_equals_recomputation_without(decoder, ids):
    """Left-padded rows with a cache against each row alone, whole, without one, on the masked dense model."""
    lengths, new, keeps = (16, 9), 5, drawn(decoder, 3)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    decoder.module.generation_config.eos_token_id = None
    options = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
    with narrowed(decoder, keeps), torch.no_grad():
        made = decoder.module.generate(
            input_ids=ids * mask, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **options
        )
    actual = torch.stack(made.logits, dim=1)
    for row, length in enumerate(lengths):
        with masked(decoder, keeps):
            whole = logits(decoder, made.sequences[row : row + 1, 16 - length :])
        close(actual[row], whole[0, length - 1 : -1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "qwen3"])
def test_what_is_gone_is_not_cached(family, ids):
    decoder = tiny_decoder(family)
    dense = heads_of(decoder, 0)
    with narrowed(decoder, {1: Keep(groups=[dense.groups - 1])}), torch.no_grad():
        cache = decoder.module(ids, use_cache=True).past_key_values
        assert heads_of(decoder, 1) == Heads(dense.per_group, 1, dense.width)
    assert [layer.keys.shape[1] for layer in cache.layers] == [dense.groups, 1, dense.groups, dense.groups]
    assert heads_of(decoder, 1) == dense


@usual
def test_all_kept_is_the_dense_model_bit_for_bit(decoder, ids):
    keep = Keep(neurons=range(neuron_count(decoder)))
    if decoder.config.model_type not in SHARED_NORMS:
        heads = heads_of(decoder, 0)
        keep = Keep(neurons=keep.neurons, heads=range(heads.count), groups=range(heads.groups))
    outputs, before = logits(decoder, ids), everything(decoder)
    with narrowed(decoder, dict.fromkeys(range(4), keep)):
        assert_same(dict(before), everything(decoder))
        assert torch.equal(logits(decoder, ids), outputs)


@usual
def test_everything_comes_back(decoder, ids):
    """After the block is left, and after an error in it; the configuration is never touched."""
    outputs, before, keeps = logits(decoder, ids), everything(decoder), drawn(decoder, 0)
    for fails in (False, True):
        with suppress(RuntimeError), narrowed(decoder, keeps):
            assert decoder.module.config.to_dict() == before["config"]
            if fails:
                raise RuntimeError
        assert_same(dict(before), everything(decoder))
        assert torch.equal(logits(decoder, ids), outputs)


def everything(decoder):
    """A snapshot, and every number that a module knows."""
    numbers = [
        (name, key, value)
        for name, part in decoder.module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, int)
    ]
    objects = [(name, id(weight)) for name, weight in decoder.module.named_parameters()]
    return {**snapshot(decoder), "every number": numbers, "parameters": objects}


@usual
def test_flops_are_those_of_the_kept_units_and_those_that_pytorch_counts(decoder, ids):
    """Formula, hand count and dispatcher, for a prefill of 8 tokens and a step."""
    keeps = drawn(decoder, 4)
    prompt, step = ids[:1, :8], ids[:1, 8:9]
    with narrowed(decoder, keeps), decoder.serving([Row("t", 0, (0,), 9, 9)], "generate", 8), Tracer(decoder) as tracer:

        def run():
            cache = decoder.module(prompt, use_cache=True).past_key_values
            decoder.module(step, past_key_values=cache, use_cache=True)

        _, counted = count_flops(run)
        shape, (segments,) = ModelShape.of(decoder), tracer.collect()
    stated = executed_flops(shape, segments)
    assert stated.total == counted
    for index, (now, dense) in enumerate(zip(shape.layers, ModelShape.of(decoder).layers, strict=True)):
        keep, neurons = keeps.get(index, Keep()), neuron_count(decoder)
        if keep.neurons is not None:
            assert now.mlp.macs * neurons == dense.mlp.macs * len(keep.neurons)
        if (heads := keep.heads or keep.groups) is not None:
            before = heads_of(decoder, index)
            groups = len(keep.groups or {head // before.per_group for head in keep.heads})
            count = len(heads) if keep.heads else groups * before.per_group
            width = decoder.config.hidden_size
            assert now.attention.macs == 2 * (count + groups) * before.width * width
            assert now.pair_macs == 2 * count * before.width
            assert now.cache_width == 2 * groups * before.width


def test_one_narrowing_within_another(ids):
    """Inside, units are numbered as they are there."""
    for family in ("llama", "gpt2", "gpt_neox", "phi3"):
        decoder = tiny_decoder(family)
        groups = heads_of(decoder, 0).groups
        with masked(decoder, {0: Keep(groups=[groups - 1], neurons=[5, 9])}):
            expected = logits(decoder, ids)
        outer = {0: Keep(groups=[0, groups - 1][-groups:], neurons=[1, 5, 9])}
        with narrowed(decoder, outer), narrowed(decoder, {0: Keep(groups=[1], neurons=[2, 1])}):
            close(logits(decoder, ids), expected)


def test_with_surgery_around_and_inside(ids):
    decoder = tiny_decoder("llama")
    keeps = {2: Keep(groups=[1], neurons=[0, 3])}
    with masked(decoder, keeps), without_blocks(decoder, [0]):
        expected = logits(decoder, ids)
    with narrowed(decoder, keeps), without_blocks(decoder, [0]):
        close(logits(decoder, ids), expected)
    with without_blocks(decoder, [0]), narrowed(decoder, keeps):
        close(logits(decoder, ids), expected)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (Keep(neurons=[]), "layer 0 would keep no neuron: at least one of its 48 must stay"),
        (Keep(neurons=[48]), "layer 0 has no neuron 48; they are 0 to 47"),
        (Keep(neurons=[-1, 3]), "layer 0 has no neuron -1; they are 0 to 47"),
        (Keep(neurons=[3, 4, 3]), "neuron 3 of layer 0 is named twice"),
        (Keep(groups=[]), "layer 0 would keep no group: at least one of its 2 must stay"),
        (Keep(groups=[2]), "layer 0 has no group 2; they are 0 to 1"),
        (Keep(heads=[]), "layer 0 would keep no head: at least one of its 4 must stay"),
        (Keep(heads=[0, 4]), "layer 0 has no head 4; they are 0 to 3"),
        (Keep(heads=[1, 1]), "head 1 of layer 0 is named twice"),
        (Keep(heads=[0, 1, 2]), r"layer 0 would keep unequal numbers of query heads \(2 of group 0, 1 of group 1\)"),
        (Keep(heads=[0, 1]), r"unequal numbers of query heads \(2 of group 0, 0 of group 1\)"),
        (Keep(heads=[0, 1], groups=[1]), "layer 0 would keep heads of group 0, and not the group"),
    ],
)
def test_units_that_cannot_stay_so_are_refused(keep, says):
    decoder = tiny_decoder("llama")
    before = everything(decoder)
    with pytest.raises(MethodError, match=says), narrowed(decoder, {3: Keep(neurons=[0]), 0: keep}):
        pass
    assert_same(before, everything(decoder))


def test_layers_that_are_not_there_are_refused():
    decoder = tiny_decoder("llama")
    with pytest.raises(MethodError, match="no layer 4; the model's layers are 0 to 3"), narrowed(decoder, {4: Keep()}):
        pass
    with (
        without_blocks(decoder, [1]),
        pytest.raises(MethodError, match="layer 1 is out of the model"),
        narrowed(decoder, {1: Keep(neurons=[0])}),
    ):
        pass
    for family in ("llama", "opt"):
        decoder = tiny_decoder(family)
        with (
            without_branches(decoder, mlp=[1]),
            pytest.raises(MethodError, match="the MLP of layer 1 is out of the model"),
            narrowed(decoder, {1: Keep(neurons=[0])}),
        ):
            pass


def test_norms_over_all_heads_are_refused_by_name():
    decoder = tiny_decoder("olmo2")
    says = (
        r"Olmo2ForCausalLM \(model_type 'olmo2'\): the attention of layer 0 cannot be narrowed: q_norm.weight belongs"
    )
    with pytest.raises(UnsupportedModelError, match=says), narrowed(decoder, {0: Keep(groups=[0])}):
        pass


def test_weights_of_all_neurons_are_refused_by_name():
    decoder = tiny_decoder("llama")
    decoder.anatomy.blocks[2].mlp.modules[0].sub_norm = nn.LayerNorm(48)
    says = "LlamaForCausalLM .*: the MLP of layer 2 cannot be narrowed: sub_norm.weight belongs to all of its"
    with pytest.raises(UnsupportedModelError, match=says), narrowed(decoder, {2: Keep(neurons=[0])}):
        pass
