"""Another basis of the residual stream gives the same logits, or is refused by name."""

import pytest
import torch

from harness.core.errors import MethodError, UnsupportedModelError
from harness.model.basis import Stream, centre, fold, rms_norms, rotate
from harness.model.surgery import without_blocks, without_branches
from harness.model.weights.replaced import replaced
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import FAMILIES, tiny_decoder
from tests.benchmarks.architectures import decoder as architecture

REFUSED = {
    "gemma2": "Gemma2.* normalises the outputs of its branches",
    "gemma3_text": "Gemma3.* normalises the outputs",
    "gemma3": "Gemma3.* normalises the outputs",
    "olmo2": "Olmo2.* normalises the outputs",
}
TOLERANCE = 2e-6
"""Of the largest logit: several products are rounded to float32 in another order."""


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def rotation(width=32):
    draws = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(draws)[0]


def require_same(decoder, ids, dense):
    torch.testing.assert_close(logits(decoder, ids), dense, rtol=0, atol=TOLERANCE * float(dense.abs().max()))


def handled():
    """The families whose stream is known; what is refused is another test's."""
    for family in FAMILIES:
        try:
            Stream.of(tiny_decoder(family, layers=2))
        except UnsupportedModelError:
            continue
        yield family


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", handled())
def test_every_step_leaves_the_logits(family, tied, ids):
    decoder = tiny_decoder(family, tie_word_embeddings=tied)
    dense, before = logits(decoder, ids), model_snapshot(decoder)
    centred = Stream.of(decoder).norms[0].centres
    with replaced(decoder, fold(decoder)):
        assert all(norm.gain is None or (norm.gain == 1).all() for norm in Stream.of(decoder).norms)
        assert all(norm.bias is None or not norm.bias.any() for norm in Stream.of(decoder).norms)
        require_same(decoder, ids, dense)
        if centred:
            with replaced(decoder, centre(decoder)):
                require_same(decoder, ids, dense)
                with pytest.raises(MethodError, match="would see the rotation"):
                    rotate(decoder, rotation())
                with rms_norms(decoder):
                    require_same(decoder, ids, dense)
                    with replaced(decoder, rotate(decoder, rotation())):
                        require_same(decoder, ids, dense)
        else:
            with replaced(decoder, rotate(decoder, rotation())):
                require_same(decoder, ids, dense)
    assert torch.equal(logits(decoder, ids), dense)
    assert not changes(before, model_snapshot(decoder))


def test_most_families_are_handled():
    assert {"llama", "qwen3", "gemma", "phi3", "gpt2", "opt", "gpt_neox", "gpt_neox_sequential"} <= set(handled())


@pytest.mark.parametrize("family", REFUSED)
def test_norms_after_a_branch_are_refused_by_name(family):
    with pytest.raises(UnsupportedModelError, match=REFUSED[family]):
        fold(tiny_decoder(family))


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_rms_norms_cannot_be_centred(family):
    with pytest.raises(UnsupportedModelError, match=f"{family}.*has RMSNorms already"):
        centre(tiny_decoder(family))


def test_what_is_added_from_buffers_has_no_other_basis(ids):
    decoder = architecture("xglm")
    dense = logits(decoder, ids)
    for change in (centre, lambda model: rotate(model, rotation())):
        with pytest.raises(UnsupportedModelError, match=r"embed_positions, a XGLMSinusoidal.* no other basis"):
            change(decoder)
    with replaced(decoder, fold(decoder)):  # which leaves the stream as it is
        require_same(decoder, ids, dense)


@pytest.mark.parametrize("name", ["mixtral", "phimoe", "deepseek_v3"])
def test_experts_are_refused_without_advice_about_linear_layers(name):
    decoder = architecture(name)
    for change in (fold, centre, lambda model: rotate(model, rotation())):
        with pytest.raises(UnsupportedModelError, match="models without experts alone") as refused:
            change(decoder)
        assert "linears=" not in str(refused.value)


def test_an_offset_of_the_gain_is_seen():
    assert {norm.offset for norm in Stream.of(tiny_decoder("gemma")).norms} == {1}
    assert {norm.offset for norm in Stream.of(tiny_decoder("llama")).norms} == {0}


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1e-6, 1e-8])
@pytest.mark.parametrize(("family", "option"), [("gpt2", "layer_norm_epsilon"), ("llama", "rms_norm_eps")])
def test_what_a_norm_adds_is_read_off_it(family, option, eps):
    decoder = tiny_decoder(family, layers=1, **{option: eps})
    assert all(norm.eps == pytest.approx(eps, rel=1e-3, abs=1e-11) for norm in Stream.of(decoder).norms)


def test_a_norm_that_computes_something_else_is_refused():
    decoder = tiny_decoder("llama")
    norm = decoder.anatomy.blocks[1].mlp.pre_norm
    plain = norm.forward
    norm.forward = lambda x: plain(x).tanh()
    with pytest.raises(
        UnsupportedModelError, match=r"Llama.*layers\.1\.post_attention_layernorm, a LlamaRMSNorm, is no"
    ):
        fold(decoder)


def test_what_is_no_rotation_is_refused():
    decoder = tiny_decoder("llama")
    with replaced(decoder, fold(decoder)), pytest.raises(MethodError, match="not orthogonal"):
        rotate(decoder, 2 * rotation())
    with pytest.raises(MethodError, match=r"model\.norm would see the rotation|layernorm would see the rotation"):
        rotate(decoder, rotation())


@pytest.mark.parametrize("out", ["block", "attention", "mlp"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_layers_that_are_out_stay_out(family, out, ids):
    decoder = tiny_decoder(family)
    surgery = without_blocks(decoder, [1]) if out == "block" else without_branches(decoder, **{out: [1]})
    with surgery:
        dropped = logits(decoder, ids)
        with replaced(decoder, fold(decoder) | centre(decoder)), rms_norms(decoder):
            require_same(decoder, ids, dropped)
