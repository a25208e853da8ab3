"""RMS fold: the same answers from RMSNorms, what it refuses, and what it stacks with."""

import pytest
import torch
from torch import nn

from harness.contract.facts import Savings
from harness.contract.preparation import Preparation
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.states import States
from harness.contract.study import Study
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.shape import ModelShape
from harness.methods.lossless.rms_fold import RmsFold
from harness.model.basis import Stream
from harness.model.head import FinalHead
from harness.model.weights.savings import savings
from harness.testing.tiny import FAMILIES, tiny_decoder

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def with_layer_norms():
    for family in FAMILIES:
        decoder = tiny_decoder(family, layers=1)
        try:
            if all(norm.centres for norm in Stream.of(decoder).norms):
                yield family
        except UnsupportedModelError:
            continue


@pytest.mark.parametrize("family", with_layer_norms())
def test_the_answers_are_denses(family, ids):
    decoder = tiny_decoder(family)
    prompts = torch.randint(3, 259, (8, 9), generator=torch.Generator().manual_seed(4))
    options = {"attention_mask": torch.ones_like(prompts), "max_new_tokens": 12, "do_sample": False}
    dense, text = logits(decoder, ids), decoder.module.generate(prompts, **options)
    norms = [module for module in decoder.module.modules() if isinstance(module, nn.LayerNorm)]
    with RmsFold().attach(decoder, Prepared()):
        assert not any(norm._parameters.get("weight") is not None for norm in norms)
        x = torch.randn(32, generator=torch.Generator().manual_seed(0)) + 1
        for norm in norms:
            torch.testing.assert_close(norm(x / 100), nn.functional.rms_norm(x / 100, (32,), eps=norm.eps))
        torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=1e-6 * float(dense.abs().max()))
        assert torch.equal(decoder.module.generate(prompts, **options), text)
        assert savings(parse("rms-fold"), decoder) is Savings.NONE
    assert torch.equal(logits(decoder, ids), dense)


def test_it_is_for_several_families():
    assert {"gpt2", "opt", "gpt_neox", "gpt_neox_sequential"} <= set(with_layer_norms())


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_they_are(tied):
    decoder = tiny_decoder("gpt2", tie_word_embeddings=tied)
    dense = ModelShape.of(decoder)
    with RmsFold().attach(decoder, Prepared()):
        shape = ModelShape.of(decoder)
    # nine norms of 32 channels with gain and bias; a bias for the head of 259 tokens, and its weight where it was tied
    assert shape.parameters == dense.parameters - 9 * 2 * 32 + 259 + (259 * 32 if tied else 0)
    assert shape.layers == dense.layers


def test_a_head_that_reads_some_layer_reads_the_folded_norm(ids):
    decoder = tiny_decoder("gpt2")
    dense = logits(decoder, ids)
    with RmsFold().attach(decoder, Prepared()), torch.no_grad():
        states = decoder.module.transformer.h[-1].register_forward_hook(lambda _, args, output: kept.append(output))
        kept: list = []
        logits(decoder, ids)
        states.remove()
        state = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
        torch.testing.assert_close(FinalHead(decoder)(state), dense, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "error", "says"),
    [
        ("llama", UnsupportedModelError, "LlamaForCausalLM .* has RMSNorms already"),
        ("gemma", UnsupportedModelError, "GemmaForCausalLM .* has RMSNorms already"),
        ("olmo2", UnsupportedModelError, "Olmo2.* normalises the outputs of its branches"),
    ],
)
def test_other_norms_are_refused_before_the_model_is_loaded(family, error, says, tmp_path):
    decoder = tiny_decoder(family)
    outline = tiny_decoder(family)
    outline.module.to("meta")
    with pytest.raises(error, match=says):
        parse("rms-fold").check_model(lambda: outline)
    with pytest.raises(error, match=says), parse("rms-fold").applied(decoder, Preparation(States(tmp_path), TEXT)):
        pass


def test_half_precision_is_refused():
    decoder = tiny_decoder("gpt2")
    decoder.module.bfloat16()
    says = r"rms-fold is exact in float32, and the model runs in torch\.bfloat16: run with --model_args dtype=float32"
    with pytest.raises(MethodError, match=says):
        RmsFold().check_model(decoder)
    decoder.module.float()
    decoder.autocast = torch.float16
    with pytest.raises(MethodError, match=r"runs in torch\.float16"), RmsFold().attach(decoder, Prepared()):
        pass


@pytest.mark.parametrize("first", ["wanda", "magnitude", "sparse-gpt", "int8-dynamic", "calm", "random-skip"])
def test_it_goes_before_what_uses_the_weights(first):
    with pytest.raises(MethodError, match=rf"that {first} uses: write rms-fold\+{first}"):
        parse(f"{first}+rms-fold").check_order()
    parse(f"rms-fold+{first}").check_order()


@pytest.mark.parametrize(
    "other", ["layer-drop:layers=1", "wanda:samples=2,length=48", "int8-dynamic", "layer-drop:unit=mlp,layers=1"]
)
def test_other_methods_find_the_model_that_they_know(other, tmp_path, ids):
    decoder, preparation = tiny_decoder("gpt2"), Preparation(States(tmp_path), TEXT)
    dense = logits(decoder, ids)
    with parse(f"rms-fold+{other}").applied(decoder, preparation):
        assert not torch.allclose(logits(decoder, ids), dense, atol=1e-4)
    assert torch.equal(logits(decoder, ids), dense)


def test_layers_may_be_out(tmp_path, ids):
    decoder, preparation = tiny_decoder("gpt2"), Preparation(States(tmp_path), TEXT)
    with parse("layer-drop:layers=1").applied(decoder, preparation):
        dropped = logits(decoder, ids)
    with parse("layer-drop:layers=1+rms-fold").applied(decoder, preparation):
        torch.testing.assert_close(logits(decoder, ids), dropped, rtol=0, atol=1e-4)
