"""The token engine equals masked recomputation without a cache, and an exact fill is what makes it so."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from harness.contract.decoder import Row
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.audit import count_flops
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.surgery import without_blocks, without_branches
from harness.model.tokens.token_depth import TokenPolicy, token_depth
from harness.model.weights.replaced import replaced
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import usual

PROMPT, STEPS, PADDING = 9, 8, 2


class Table(TokenPolicy):
    """Which token runs which layer, fixed: bool of shape [layers, rows, positions]."""

    def __init__(self, table):
        self.table, self.seen = table, 0

    def begin(self, tokens):
        width = tokens.steps.shape[1]
        self.now = self.table[:, :, self.seen : self.seen + width]
        self.seen += width

    def runs(self, layer, states):
        return self.now[layer]


def pattern(rows=3, layers=4):
    """Layers skipped at random, also in the prompt; one step skips all of them and one runs all."""
    table = torch.rand(layers, rows, PROMPT + STEPS, generator=torch.Generator().manual_seed(0)) > 0.4
    table[:, :, PROMPT + 2], table[:, :, PROMPT + 3] = False, True
    return table


@torch.no_grad()
def masked(decoder, ids, table, **options):
    """The reference: no cache, everything computed, then each token's output or input of every layer."""
    handles = []
    for block in decoder.anatomy.blocks:

        def choose(module, args, kwargs, output, runs=table[block.index]):
            states = args[0] if args else kwargs["hidden_states"]
            first = output[0] if isinstance(output, tuple) else output
            mixed = torch.where(runs[..., None], first, states)
            return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

        handles.append(block.module.register_forward_hook(choose, with_kwargs=True))
    logits = decoder.module(input_ids=ids, use_cache=False, **options).logits
    for handle in handles:
        handle.remove()
    return logits


@torch.no_grad()
def cached(decoder, ids, prompt=PROMPT, attention_mask=None, position_ids=None):
    """Logits of a prefill and of decode steps of the given tokens."""
    logits, cache = [], None
    for start, end in [(0, prompt), *((place, place + 1) for place in range(prompt, ids.shape[1]))]:
        output = decoder.module(
            input_ids=ids[:, start:end],
            attention_mask=None if attention_mask is None else attention_mask[:, :end],
            position_ids=None if position_ids is None else position_ids[:, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, 1)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 259, (3, PROMPT + STEPS), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def padded(ids):
    """Ids whose second row is padded on the left, with row_segments mask and positions."""
    mask = torch.ones_like(ids)
    mask[1, :PADDING] = 0
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def test_decoding_equals_masked_recomputation(decoder, ids, padded):
    table, real = pattern(), padded["attention_mask"].bool()
    expected = masked(decoder, ids, table, **padded)
    with token_depth(decoder, Table(table)):
        actual = cached(decoder, ids, **padded)
    torch.testing.assert_close(actual[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_a_single_row_and_a_prompt_of_one_token(family, ids):
    decoder, table = tiny_decoder(family), pattern(1)
    expected = masked(decoder, ids[:1], table)
    with token_depth(decoder, Table(table)):
        actual = cached(decoder, ids[:1], prompt=1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@usual
def test_skipping_nothing_is_dense_bit_for_bit(decoder, ids):
    dense, untouched = cached(decoder, ids), model_snapshot(decoder)
    with token_depth(decoder, Table(torch.ones(4, *ids.shape, dtype=torch.bool))):
        assert torch.equal(cached(decoder, ids), dense)
    assert not changes(untouched, model_snapshot(decoder))
    assert decoder.auxiliaries == []


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gpt_neox"])
def test_copied_keys_and_values_are_another_model(family, ids):
    """Every other token exits after layer 1, and the tokens between look back at row_segments keys and values."""
    decoder, table = tiny_decoder(family), torch.ones(4, 3, PROMPT + STEPS, dtype=torch.bool)
    table[2:, :, PROMPT::2] = False
    expected = masked(decoder, ids, table)

    def copy_exit_layer(module, args, output):
        """What MuE's code does: the keys and values of the layer that the token left after, for all deeper ones."""
        if args[0].shape[1] == 1 and not policy.now[2].any():
            exit_layer, *deeper = output.past_key_values.layers[1:]
            for layer in deeper:
                layer.keys[:, :, -1], layer.values[:, :, -1] = exit_layer.keys[:, :, -1], exit_layer.values[:, :, -1]

    policy = Table(table)
    with token_depth(decoder, policy):
        filled = cached(decoder, ids)
    policy = Table(table)
    handle = decoder.module.register_forward_hook(
        lambda module, args, kwargs, output: copy_exit_layer(module, (kwargs["input_ids"],), output), with_kwargs=True
    )
    with token_depth(decoder, policy):
        copied = cached(decoder, ids)
    handle.remove()
    scale = expected.abs().max()
    assert (filled - expected).abs().max() / scale < 1e-5
    assert (copied - expected).abs().max() / scale > 0.02


def traced(decoder, ids, table):
    """What ran for each row in a generation, and PyTorch's own count of row_segments FLOPs."""
    rows = tuple(Row("", row, (0,), PROMPT, PROMPT) for row in range(len(ids)))
    with token_depth(decoder, Table(table)), Tracer(decoder) as tracer, decoder.serving(rows, "generate"):
        _, counted = count_flops(lambda: cached(decoder, ids))
        return tracer.collect(), counted


def test_work_equals_a_count_by_hand(ids):
    """Llama of width 32, 4 heads of 8, 2 key-value heads, MLP of 48, 259 tokens: multiply-accumulates by hand."""
    decoder, table = tiny_decoder("llama"), pattern()
    table[:, :, :PROMPT] = True
    segments, counted = traced(decoder, ids, table)
    fill, layer, head = 32 * 16 * 2, 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48, 32 * 259
    for row, row_segments in enumerate(segments):
        flops = executed_flops(ModelShape.of(decoder), row_segments)
        ran, skipped = table[:, row].sum().item(), (~table[:, row]).sum().item()
        pairs = 4 * PROMPT**2 + sum(
            table[:, row, place].sum().item() * (place + 1) for place in range(PROMPT, ids.shape[1])
        )
        assert flops.extra["fill"] == 2 * fill * skipped
        assert flops.attention_linear + flops.mlp == 2 * layer * ran
        assert flops.attention_scores == 4 * 32 * pairs
        assert flops.head == 2 * head * ids.shape[1]
        assert sum(sum(segment.fill) * segment.forwards for segment in row_segments) == skipped
    assert sum(executed_flops(ModelShape.of(decoder), row_segments).total for row_segments in segments) == counted


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "opt", "gpt_neox", "olmo2", "gemma2"])
def test_work_equals_what_the_operators_multiply(family, ids):
    decoder, table = tiny_decoder(family), pattern()
    segments, counted = traced(decoder, ids, table)
    shape = ModelShape.of(decoder)
    assert sum(executed_flops(shape, row_segments).total for row_segments in segments) == counted
    assert all(sum(sum(segment.fill) for segment in row_segments) > 0 for row_segments in segments)


def test_a_skipped_layer_reads_no_other_weights(ids):
    """Hooks on the linear layers: at a step that skips everything, keys and values alone are projected."""
    decoder, ran = tiny_decoder("llama"), []
    table = torch.ones(4, 3, PROMPT + STEPS, dtype=torch.bool)
    table[:, :, PROMPT:] = False
    with token_depth(decoder, Table(table)):
        cache = decoder.module(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
        for name, part in decoder.module.named_modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(lambda *_, name=name: ran.append(name))
        decoder.module(input_ids=ids[:, PROMPT : PROMPT + 1], past_key_values=cache, use_cache=True)
    projections = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(4) for part in "kv"]
    assert ran == [*projections, "lm_head"]


def test_a_filled_layer_keeps_its_tokens_in_the_cache(ids):
    decoder, table = tiny_decoder("mistral"), pattern()
    with torch.no_grad(), token_depth(decoder, Table(table)):
        cache = decoder.module(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
        for place in range(PROMPT, ids.shape[1]):
            decoder.module(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
    assert [layer.get_seq_length() for layer in cache.layers] == [ids.shape[1]] * 4
    assert {len(layer.keys) for layer in cache.layers} == {3}


def test_a_policy_may_change_its_tensor_in_place(ids):
    """What a layer runs is read each time: here every step's flags are written into one tensor."""
    decoder, table = tiny_decoder("llama"), pattern()

    class InPlace(Table):
        def begin(self, tokens):
            super().begin(tokens)
            self.flags = torch.empty_like(self.now[0])

        def runs(self, layer, states):
            return self.flags.copy_(self.now[layer])

    with token_depth(decoder, InPlace(table)):
        actual = cached(decoder, ids)
    torch.testing.assert_close(actual, masked(decoder, ids, table), rtol=0, atol=1e-5)


def test_running_a_layer_twice_is_refused(ids):
    decoder = tiny_decoder("llama")
    with (
        token_depth(decoder, Table(pattern().int())),
        pytest.raises(MethodError, match="layer 0: a token runs a layer"),
    ):
        cached(decoder, ids)


@pytest.mark.parametrize("options", [{"model_type": "novel"}, {"_attn_implementation": "flash_attention_2"}])
def test_other_models_are_refused_by_name(options, monkeypatch):
    decoder = tiny_decoder("llama")
    for name, value in options.items():
        monkeypatch.setattr(type(decoder.module.config), name, value)
    message = r"LlamaForCausalLM.*(novel|flash_attention_2)"
    with pytest.raises(UnsupportedModelError, match=message), token_depth(decoder, Table(pattern())):
        pass


def test_two_engines_at_once_are_refused():
    decoder = tiny_decoder("llama")
    first, second = (token_depth(decoder, Table(pattern())) for _ in range(2))
    with first, pytest.raises(MethodError, match="directs the layers"), second:
        pass


@pytest.mark.parametrize(("family", "projection"), [("llama", "v_proj"), ("phi3", "qkv_proj")])
def test_projections_replaced_behind_its_back_are_refused(family, projection, ids):
    decoder = tiny_decoder(family)
    attention = decoder.anatomy.blocks[2].attention.modules[0]
    with token_depth(decoder, Table(pattern())):
        setattr(attention, projection, deepcopy(getattr(attention, projection)))
        with pytest.raises(MethodError, match="replaced their projections: name it first"):
            cached(decoder, ids)


def test_a_fused_projection_that_was_replaced_is_run_whole(ids):
    decoder, table = tiny_decoder("phi3"), pattern()
    for block in decoder.anatomy.blocks:
        attention = block.attention.modules[0]
        attention.qkv_proj = nn.Sequential(attention.qkv_proj)
    expected = masked(decoder, ids, table)
    with token_depth(decoder, Table(table)):
        torch.testing.assert_close(cached(decoder, ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gpt_neox", "llama"])
@pytest.mark.parametrize("above", [False, True])
def test_weights_may_be_replaced_below_and_above(family, above, ids):
    """Keys and values are filled from the weights that are there in the forward, and the dense ones afterwards."""
    decoder, table = tiny_decoder(family), pattern()
    dense = masked(decoder, ids, table)
    pruned = {
        name: parameter * (torch.rand(parameter.shape, generator=torch.Generator().manual_seed(0)) > 0.8)
        for name, parameter in decoder.module.named_parameters()
        if "attn" in name or "attention" in name
    }
    with replaced(decoder, pruned):
        expected = masked(decoder, ids, table)
    engines = [replaced(decoder, pruned), token_depth(decoder, Table(table))]
    first, second = engines[::-1] if above else engines
    with first, second:
        torch.testing.assert_close(cached(decoder, ids), expected, rtol=0, atol=1e-5)
    with token_depth(decoder, Table(table)):
        with replaced(decoder, pruned):
            pass
        torch.testing.assert_close(cached(decoder, ids), dense, rtol=0, atol=1e-5)
    assert (expected - dense).abs().max() > 1e-2


def test_layers_taken_out_above_are_refused(ids):
    decoder = tiny_decoder("llama")
    with (
        token_depth(decoder, Table(pattern())),
        without_blocks(decoder, [0]),
        pytest.raises(MethodError, match="name what takes them out first"),
    ):
        cached(decoder, ids)


def test_a_layer_without_attention_is_refused():
    decoder = tiny_decoder("llama")
    below, above = without_branches(decoder, attention=[2]), token_depth(decoder, Table(pattern()))
    with below, pytest.raises(MethodError, match="cannot skip layer 2, whose attention is out"), above:
        pass


def test_layers_that_are_out_stay_out(ids):
    """Below the engine, surgery renumbers layers and slots; a policy still speaks of the dense model's layers."""
    decoder, table = tiny_decoder("gemma3_text"), pattern()
    with without_blocks(decoder, [0]):
        expected = masked(decoder, ids, table)
        with token_depth(decoder, Table(table)):
            torch.testing.assert_close(cached(decoder, ids), expected, rtol=1e-5, atol=1e-5)
