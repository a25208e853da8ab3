"""Decoders are read by their layout, completely, and refused by name otherwise."""

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.bart.modeling_bart import BartForCausalLM

from harness.contract.linears import LINEAR
from harness.core.errors import UnsupportedModelError
from harness.model.layouts import dissect
from harness.testing.tiny import FAMILIES, tiny_decoder, tiny_model

# family -> layout, attention, its norms, MLP, its norms, parallel
LLAMA = ("llama", "self_attn", ("input_layernorm", None), ["mlp"], ("post_attention_layernorm", None), False)
GEMMA2 = (
    "gemma2",
    "self_attn",
    ("input_layernorm", "post_attention_layernorm"),
    ["mlp"],
    ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    False,
)
NEOX = ("gpt_neox", "attention", ("input_layernorm", None), ["mlp"], ("post_attention_layernorm", None))
EXPECTED = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"), LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3"), GEMMA2),
    "gpt2": ("gpt2", "attn", ("ln_1", None), ["mlp"], ("ln_2", None), False),
    "opt": (
        "opt",
        "self_attn",
        ("self_attn_layer_norm", None),
        ["fc1", "fc2"],
        ("final_layer_norm", None),
        False,
    ),
    "gpt_neox": (*NEOX, True),
    "gpt_neox_sequential": (*NEOX, False),
    "olmo2": (
        "olmo2",
        "self_attn",
        (None, "post_attention_layernorm"),
        ["mlp"],
        (None, "post_feedforward_layernorm"),
        False,
    ),
}
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_every_family_is_expected():
    assert set(EXPECTED) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_right_modules(family):
    layout, attention, attention_norms, mlp, mlp_norms, parallel = EXPECTED[family]
    anatomy = tiny_decoder(family, layers=3).anatomy
    assert anatomy.layout == layout
    assert len(anatomy.blocks) == 3

    def part(block, name):
        return None if name is None else getattr(block.module, name)

    for index, block in enumerate(anatomy.blocks):
        assert block.index == index
        assert block.module is getattr(anatomy.parent, anatomy.layers_name)[index]
        assert block.parallel is parallel
        assert block.attention.modules == (part(block, attention),)
        assert (block.attention.pre_norm, block.attention.post_norm) == tuple(part(block, n) for n in attention_norms)
        assert block.mlp.modules == tuple(part(block, name) for name in mlp)
        assert (block.mlp.pre_norm, block.mlp.post_norm) == tuple(part(block, n) for n in mlp_norms)


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_of_the_model_are_found_by_what_they_do(family, ids):
    """The embedding is read first, the final norm feeds the head, and the head gives the logits."""
    decoder = tiny_decoder(family)
    anatomy, seen = decoder.anatomy, {}
    anatomy.embedding.register_forward_hook(lambda m, args, out: seen.update(ids=args[0]))
    anatomy.final_norm.register_forward_hook(lambda m, args, out: seen.update(normed=out))
    anatomy.head.register_forward_hook(lambda m, args, out: seen.update(head_input=args[0], logits=out))
    with torch.no_grad():
        logits = decoder.module(ids).logits
    assert torch.equal(seen["ids"], ids)
    assert torch.equal(seen["normed"], seen["head_input"])
    assert seen["logits"].shape == logits.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_of_a_block_escapes(family):
    for block in tiny_decoder(family).anatomy.blocks:
        parts = [*block.attention.linears(), *block.mlp.linears(), *block.attention.norms, *block.mlp.norms]
        inside = [*block.attention.modules, *block.mlp.modules]
        matrices = {id(p) for part in parts for p in part.parameters()}
        for parameter in block.module.parameters():
            vectors_inside = {id(p) for part in inside for p in part.parameters() if p.ndim == 1}
            assert id(parameter) in matrices | vectors_inside
        assert all(isinstance(part, LINEAR) for part in block.attention.linears())


@pytest.mark.parametrize("family", FAMILIES)
def test_branch_outputs_add_up_to_the_stream(family, ids):
    """y = x + attention + MLP, with the outputs and inputs of branches where the anatomy says they are."""
    decoder = tiny_decoder(family)
    block, seen = decoder.anatomy.blocks[1], {}

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    def record(name):
        return lambda module, args, out: seen.update({name: first(out).reshape(2, 16, -1)})

    block.attention.output.register_forward_hook(record("attention"))
    block.mlp.output.register_forward_hook(record("mlp"))
    block.module.register_forward_pre_hook(lambda module, args: seen.update(x=args[0]))
    block.module.register_forward_hook(record("y"))

    def read(module, args, kwargs):
        seen["mlp_input"] = (args[0] if args else kwargs["hidden_states"]).reshape(2, 16, -1)

    block.mlp.input.register_forward_pre_hook(read, with_kwargs=True)
    with torch.no_grad():
        decoder.module(ids)
    torch.testing.assert_close(seen["y"], seen["x"] + seen["attention"] + seen["mlp"])
    middle = seen["x"] if block.parallel else seen["x"] + seen["attention"]
    torch.testing.assert_close(seen["mlp_input"], middle)


def test_a_replaced_linear_is_seen():
    attention = tiny_decoder("llama").anatomy.blocks[0].attention
    attention.modules[0].q_proj = replacement = nn.Linear(32, 32)
    assert attention.linears()[0] is replacement


def t5():
    return T5ForConditionalGeneration(T5Config(d_model=16, d_ff=16, num_layers=1, num_heads=2))


def experts_apart():
    """As remote code has them: a list of MLPs."""
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2))
    model.model.layers[1].mlp.experts = nn.ModuleList([nn.Linear(16, 16)])
    return model


def bloom():
    return BloomForCausalLM(BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=32))


def opt_350m():
    return tiny_model("opt", do_layer_norm_before=False)


def bert():
    return BertLMHeadModel(BertConfig(**SIZES, is_decoder=True))


def bart_decoder():
    sizes = {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 16, "decoder_attention_heads": 2}
    return BartForCausalLM(BartConfig(**sizes))


def without_a_head():
    return LlamaModel(tiny_model("llama").config)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (t5, r"T5ForConditionalGeneration \(model_type 't5'\).*encoder-decoder"),
        (experts_apart, r"MixtralForCausalLM.*layer 1 keeps its experts apart"),
        (bloom, r"BloomForCausalLM.*adds the residual stream itself"),
        (opt_350m, "OPTForCausalLM.*do_layer_norm_before"),
        (bert, r"BertLMHeadModel \(model_type 'bert'\).*looked for model.layers"),
        (bart_decoder, "BartDecoderLayer has the parts.*encoder_attn.*looked for llama: input_layernorm"),
        (without_a_head, "LlamaModel"),
    ],
)
def test_unsupported_models_are_refused_by_name(model, says):
    with pytest.raises(UnsupportedModelError, match=says):
        dissect(model())


def test_layers_that_differ_are_refused():
    model = tiny_model("llama")
    model.model.layers[2].post_feedforward_layernorm = nn.LayerNorm(32)
    with pytest.raises(UnsupportedModelError, match="post_feedforward_layernorm"):
        dissect(model)


def test_a_weight_of_the_block_itself_is_refused():
    model = tiny_model("llama")
    model.model.layers[1].gain = nn.Parameter(torch.ones(32))
    with pytest.raises(UnsupportedModelError, match="layer 1 keeps gain"):
        dissect(model)


def test_layers_that_share_keys_and_values_are_refused():
    model = tiny_model("llama")
    model.config.num_kv_shared_layers = 2
    with pytest.raises(UnsupportedModelError, match="num_kv_shared_layers"):
        dissect(model)
