"""What surgery takes out is not computed and not cached, the rest computes the same, and all comes back."""

from contextlib import suppress

import pytest
import torch
from transformers import DynamicCache, GPTNeoConfig, GPTNeoForCausalLM

from harness.contract.decoder import Decoder
from harness.core.errors import MethodError
from harness.model.layouts import dissect
from harness.model.surgery import without_blocks, without_branches
from harness.testing.tiny import FAMILIES, tiny_decoder, tiny_tokenizer
from tests.model.conftest import usual, variants
from tests.model.dropping import assert_same, bypassed, logits, snapshot

BLOCKS = [(0, 2), (0,), (1, 2), (1, 2, 3)]
# Hybrid families alternate sliding (even) and full (odd) attention, and one of each must stay.
BRANCHES = [
    {"attention": (0, 1), "mlp": (1, 3)},
    {"attention": (0,)},
    {"attention": (0, 3)},
    {"mlp": (0, 1, 2, 3)},
]
ATTENTION_OUT = [case for case in BRANCHES if "attention" in case]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def stepwise(decoder, ids, prompt, cache=None):
    """Logits of a prefill and one-token steps through a cache, with positions left to the model."""
    outputs, seen = [], 0
    for end in (prompt, *range(prompt + 1, ids.shape[1] + 1)):
        with torch.no_grad():
            out = decoder.module(input_ids=ids[:, seen:end], past_key_values=cache, use_cache=True)
        outputs.append(out.logits)
        cache, seen = out.past_key_values, end
    return torch.cat(outputs, dim=1), cache


def filled(cache):
    return [slot for slot, layer in enumerate(cache.layers) if layer.get_seq_length() > 0]


@variants("blocks", BLOCKS)
def test_without_blocks_equals_passing_the_stream_by(decoder, ids, blocks):
    dense = logits(decoder, ids)
    with bypassed(decoder, blocks=blocks):
        expected = logits(decoder, ids)
    with without_blocks(decoder, blocks):
        close(logits(decoder, ids), expected)
        cached, cache = stepwise(decoder, ids, prompt=4)
    close(cached, expected)
    assert (expected - dense).abs().max() > 1e-2
    assert len(cache.layers) == len(filled(cache)) == 4 - len(blocks)


@variants("out", BRANCHES)
def test_without_branches_equals_adding_zeros(decoder, ids, out):
    dense = logits(decoder, ids)
    with bypassed(decoder, **out):
        expected = logits(decoder, ids)
    with without_branches(decoder, **out):
        close(logits(decoder, ids), expected)
        cached, cache = stepwise(decoder, ids, prompt=4)
    close(cached, expected)
    assert (expected - dense).abs().max() > 1e-2
    assert len(filled(cache)) == 4 - len(out.get("attention", ()))


@variants("out", ATTENTION_OUT)
def test_a_cache_that_grows_on_demand_works_too(decoder, ids, out):
    """``DynamicCache()`` knows no configuration and takes every slot for full attention."""
    with without_branches(decoder, **out):
        close(stepwise(decoder, ids, prompt=4, cache=DynamicCache())[0], logits(decoder, ids))


@variants("out", [*ATTENTION_OUT, {"blocks": (0,)}, {"blocks": (1, 2)}])
def test_generation_with_padding_equals_recomputation_without(decoder, ids, out):
    """Left-padded rows with a cache against each row alone, whole, without one, on the dense model."""
    lengths, new = (16, 9), 8
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    decoder.module.generation_config.eos_token_id = None
    attach = without_blocks(decoder, out["blocks"]) if "blocks" in out else without_branches(decoder, **out)
    with attach, torch.no_grad():
        made = decoder.module.generate(
            input_ids=ids * mask,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    actual = torch.stack(made.logits, dim=1)
    assert torch.equal(actual.argmax(-1), made.sequences[:, -new:])
    for row, length in enumerate(lengths):
        with bypassed(decoder, **out):
            whole = logits(decoder, made.sequences[row : row + 1, 16 - length :])
        close(actual[row], whole[0, length - 1 : -1])


def test_positions_are_right_when_the_first_attention_is_out(ids):
    """The trap this guards against: slot 0 left empty makes the cache look empty, silently."""
    decoder = tiny_decoder("llama")
    with without_branches(decoder, attention=(0,)):
        _, cache = stepwise(decoder, ids, prompt=16)
        assert cache.get_seq_length() == 16
        assert filled(cache) == [0, 1, 2]


def test_sliding_slots_stay_sliding():
    """Kept attentions take the first slots of their own kind, so a window never lands in a full slot."""
    decoder = tiny_decoder("gemma3_text", layers=6)
    with without_branches(decoder, attention=(0, 3)):
        numbers = [block.attention.modules[0].layer_idx for block in decoder.anatomy.blocks]
    assert numbers == [0, 1, 0, 3, 2, 3]


def test_the_configuration_describes_the_smaller_model():
    decoder = tiny_decoder("gemma3_text", layers=4)
    with without_blocks(decoder, (0,)):
        assert decoder.config.num_hidden_layers == 3
        assert decoder.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]
        assert [b.module.layer_idx for b in decoder.anatomy.blocks[1:]] == [0, 1, 2]


def test_lists_that_are_as_long_as_the_model_by_chance_are_left():
    decoder = tiny_decoder("llama", layers=2, eos_token_id=[2, 5])
    with without_blocks(decoder, (0,)):
        assert decoder.config.eos_token_id == [2, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_out_does_not_run(family, ids):
    decoder, ran = tiny_decoder(family), set()
    for block in decoder.anatomy.blocks:
        for kind, branch in (("attention", block.attention), ("mlp", block.mlp)):
            for part in [*branch.linears(), *branch.norms]:
                part.register_forward_hook(lambda *_, key=(block.index, kind): ran.add(key))
    with without_branches(decoder, attention=(0, 1), mlp=(1, 2)):
        logits(decoder, ids)
    assert ran == {(2, "attention"), (3, "attention"), (0, "mlp"), (3, "mlp")}
    ran.clear()
    with without_blocks(decoder, (0, 1)):
        logits(decoder, ids)
    assert ran == {(layer, kind) for layer in (2, 3) for kind in ("attention", "mlp")}


@usual
@pytest.mark.parametrize(
    "attach",
    [
        lambda decoder: without_blocks(decoder, (0, 3)),
        lambda decoder: without_branches(decoder, attention=(0, 1), mlp=(1, 2)),
    ],
    ids=["blocks", "branches"],
)
def test_everything_comes_back(decoder, ids, attach):
    """After the block is left, and after an error in it."""
    # A first forward settles what transformers sets up lazily.
    outputs, before = logits(decoder, ids), snapshot(decoder)
    for fails in (False, True):
        with suppress(RuntimeError), attach(decoder):
            logits(decoder, ids)
            if fails:
                raise RuntimeError
        assert_same(dict(before), snapshot(decoder))
        assert torch.equal(logits(decoder, ids), outputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_out_is_the_dense_model(family, ids):
    decoder = tiny_decoder(family)
    outputs, before = logits(decoder, ids), snapshot(decoder)
    with without_branches(decoder):
        assert_same(dict(before), snapshot(decoder))
        assert torch.equal(logits(decoder, ids), outputs)
    with without_blocks(decoder, ()):
        assert torch.equal(logits(decoder, ids), outputs)


@usual
def test_one_surgery_within_another(decoder, ids):
    before = snapshot(decoder)
    with bypassed(decoder, blocks=(0,), attention=(1,), mlp=(3,)):
        expected = logits(decoder, ids)
    with without_blocks(decoder, (0,)), without_branches(decoder, attention=(1,), mlp=(3,)):
        close(stepwise(decoder, ids, prompt=4)[0], expected)
    with without_branches(decoder, attention=(1,), mlp=(3,)), without_blocks(decoder, (0,)):
        close(stepwise(decoder, ids, prompt=4)[0], expected)
    assert_same(before, snapshot(decoder))


@pytest.mark.parametrize(
    ("attach", "says"),
    [
        (lambda d: without_blocks(d, (4,)), "no layer 4; the model's layers are 0 to 3"),
        (lambda d: without_branches(d, attention=(-1,)), "no layer -1; the model's layers are 0 to 3"),
        (lambda d: without_blocks(d, range(4)), "cannot drop every layer; from 0 to 3 of the 4 can go"),
        (lambda d: without_branches(d, attention=range(4)), "no full attention would stay"),
    ],
)
def test_impossible_surgery_is_refused_and_leaves_no_trace(attach, says):
    decoder = tiny_decoder("llama")
    before = snapshot(decoder)
    with pytest.raises(MethodError, match=says), attach(decoder):
        pass
    assert_same(before, snapshot(decoder))


@pytest.mark.parametrize(("layers", "kind"), [((0, 2), "sliding-window"), ((1, 3), "full")])
def test_one_attention_of_each_kind_must_stay(layers, kind):
    decoder = tiny_decoder("gemma3_text")
    before = snapshot(decoder)
    with pytest.raises(MethodError, match=f"no {kind}"), without_branches(decoder, attention=layers):
        pass
    assert_same(before, snapshot(decoder))


def test_what_is_out_cannot_go_again():
    decoder = tiny_decoder("llama")
    with (
        without_blocks(decoder, (1,)),
        pytest.raises(MethodError, match="layer 1 is already out"),
        without_blocks(decoder, (1,)),
    ):
        pass
    with (
        without_branches(decoder, mlp=(1,)),
        pytest.raises(MethodError, match="layer 1 is already out"),
        without_branches(decoder, mlp=(1,)),
    ):
        pass


@pytest.fixture
def gpt_neo():
    """Of a known layout, with a name of its own for a layer's number, and blocks that return tuples."""
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 4, "vocab_size": 259, "window_size": 6}
    config = GPTNeoConfig(**sizes, attention_types=[[["global", "local"], 2]], bos_token_id=1, eos_token_id=2)
    module = GPTNeoForCausalLM(config).eval()
    return Decoder(module=module, tokenizer=tiny_tokenizer(), anatomy=dissect(module), fingerprint="")


@pytest.mark.parametrize("out", [{"blocks": (0, 2)}, {"attention": (0,)}], ids=str)
def test_a_layer_may_call_its_number_layer_id(gpt_neo, ids, out):
    before = snapshot(gpt_neo)
    with bypassed(gpt_neo, **out):
        expected = logits(gpt_neo, ids)
    with without_blocks(gpt_neo, out["blocks"]) if "blocks" in out else without_branches(gpt_neo, **out):
        close(stepwise(gpt_neo, ids, prompt=4)[0], expected)
    assert_same(before, snapshot(gpt_neo))


def test_an_attention_without_a_number_is_refused():
    decoder = tiny_decoder("llama")
    del decoder.anatomy.blocks[2].attention.modules[0].layer_idx
    with pytest.raises(MethodError, match="LlamaAttention has no layer_idx"), without_branches(decoder, attention=(0,)):
        pass


def test_layers_whose_index_has_a_meaning_are_not_renumbered(ids):
    decoder = tiny_decoder("gpt2", scale_attn_by_inverse_layer_idx=True)
    before = snapshot(decoder)
    with pytest.raises(MethodError, match="scale_attn_by_inverse_layer_idx"), without_blocks(decoder, (0,)):
        pass
    assert_same(before, snapshot(decoder))
    with bypassed(decoder, blocks=(3,)):
        expected = logits(decoder, ids)
    with without_blocks(decoder, (3,)):
        close(logits(decoder, ids), expected)
