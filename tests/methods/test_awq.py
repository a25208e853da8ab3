"""AWQ: what its searches leave and choose, and that nothing that was looked at gets worse."""

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.contract.study import Study
from harness.core.errors import UnsupportedModelError
from harness.methods.quantization.awq import Awq
from harness.model import scale_search
from harness.model.channel_scales import feeds
from harness.model.scale_search import clipped, search
from harness.model.weights.formats import NumberFormat, quantize
from harness.model.weights.linear import kernel_counts, sites
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.benchmarks.architectures import decoder as architecture

TEXT = Study(("The keeper of the light wrote down every ship that passed. " * 8,), "a sentence")
SMALL = {"group": 16, "samples": 2, "length": 48}
NUMBER = NumberFormat(3, 16, symmetric=False, scale="float16")
FAMILIES = {"llama": {}, "gpt2": {}, "opt": {}, "gpt_neox": {}, "gemma": {"num_key_value_heads": 4}}


@torch.no_grad()
def logits(decoder, ids):
    return decoder.module(input_ids=ids).logits


def windows(decoder):
    return list(Awq(**SMALL).windows(decoder, TEXT))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_inspected_output_errs_more_than_rounding_to_nearest(family, monkeypatch):
    decoder = tiny_decoder(family, layers=2, **FAMILIES[family])
    before, every = model_snapshot(decoder), sites(decoder)
    fed = feeds(decoder, every, inner=True)
    searched = search(decoder, windows(decoder), fed, every, NUMBER, grid=6, clip=True)
    assert not changes(before, model_snapshot(decoder))
    assert searched.tokens == 96
    assert searched.errors.keys() == {feed.name for feed in fed}
    assert all(last <= first for first, last in searched.errors.values())
    assert sum(last for _, last in searched.errors.values()) < 0.95 * sum(
        first for first, _ in searched.errors.values()
    )
    for feed in fed:
        scale = searched.scales[feed.name]
        assert float(scale.max() * scale.min()) == pytest.approx(1, rel=1e-4)


def test_the_chosen_power_is_the_best_by_hand():
    decoder = tiny_decoder("llama", layers=1)
    every = sites(decoder)
    (down,) = (feed for feed in feeds(decoder, every, inner=True) if feed.name.endswith("down_proj"))
    seen = []
    handle = down.readers[0].module.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    searched = search(decoder, windows(decoder), [down], every, NUMBER, grid=5, clip=False)
    handle.remove()
    x, weight = torch.cat(seen[-2:]), down.readers[0].weight
    errors, scales = [], []
    for power in (0, 0.2, 0.4, 0.6, 0.8):
        s = x.abs().mean(0) ** power
        s /= (s.max() * s.min()).sqrt()
        rounded = quantize(weight * s, NUMBER).dequantized() / s
        errors.append(float((x @ (rounded - weight).T).square().sum()))
        scales.append(s)
    torch.testing.assert_close(searched.scales[down.name], scales[errors.index(min(errors))], rtol=1e-4, atol=1e-6)
    assert searched.errors[down.name] == pytest.approx((errors[0], min(errors)), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_power_and_no_cuts_are_rounding_to_nearest(family, ids):
    decoder = tiny_decoder(family, layers=2)
    awq, nearest = Awq(grid=1, clip=False, **SMALL), parse("int4-weight-only:group=16").parts[0]
    state = awq.prepare(decoder, TEXT)
    assert state.facts["error"] == 1
    assert all((scale == 1).all() for scale in state.tensors.values())
    answers = []
    for method, prepared in ((awq, state), (nearest, Prepared())):
        with method.attach(decoder, prepared):
            answers.append((logits(decoder, ids), kernel_counts(decoder)))
    assert torch.equal(answers[0][0], answers[1][0])
    assert answers[0][1] == answers[1][1]


def test_cuts_err_no_more_and_leave_queries_and_keys():
    decoder = tiny_decoder("gpt_neox", layers=1)
    every = sites(decoder)
    searched = search(decoder, windows(decoder), [], every, NUMBER, grid=1, clip=True)
    names = {name.rpartition(".")[2] for name in searched.clips}
    assert names == {"dense", "dense_h_to_4h", "dense_4h_to_h"}  # queries, keys and values are one linear layer
    (down,) = (site for site in every if site.name.endswith("dense_4h_to_h"))
    seen = []
    handle = down.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for window in windows(decoder):
            decoder.module(input_ids=window)
    handle.remove()
    x, most = torch.cat(seen).view(-1, 3, 16), searched.clips[down.name]  # [tokens, groups, group]
    largest = down.weight.view(32, 3, 16).abs().amax(2)
    assert ((most >= 0.549 * largest) & (most <= largest)).all()
    assert (most < largest).any()

    def errors(limit):
        change = (quantize(clipped(down.weight, limit), NUMBER).dequantized() - down.weight).view(32, 3, 16)
        return torch.einsum("tgi,ogi->tog", x, change).square().sum(0)  # [out, groups]

    chosen = errors(most)
    for step in range(10):
        assert (chosen <= errors(largest * (1 - step / 20)) * (1 + 1e-3) + 1e-6).all()


def test_it_errs_less_than_rounding_to_nearest_where_channels_differ(ids):
    decoder = tiny_decoder("llama", layers=2)
    with torch.no_grad():
        for block in decoder.live:
            for norm in (block.attention.pre_norm, block.mlp.pre_norm):
                norm.weight[::7] *= 12
    dense = logits(decoder, ids)
    errors = []
    for method in (Awq(bits=3, **SMALL), parse("int4-weight-only:group=16,bits=3").parts[0]):
        with method.attach(decoder, method.prepare(decoder, TEXT)):
            errors.append(float((logits(decoder, ids) - dense).norm()))
    assert errors[0] < 0.85 * errors[1]


def test_scales_are_compared_on_the_first_windows_alone(monkeypatch):
    decoder = tiny_decoder("llama", layers=1)
    monkeypatch.setattr(scale_search, "SEARCHED", 40)
    fed = feeds(decoder, sites(decoder))[:1]
    calls = []
    handle = fed[0].inspected.register_forward_hook(lambda *_: calls.append(1))
    search(decoder, windows(decoder), fed, sites(decoder), NUMBER, grid=3, clip=False)
    handle.remove()
    # one window, once for the layers' arguments and twice to see that nothing changes; two, to look and to pass on; the
    # first of them, dense and with three powers
    assert len(calls) == 3 + 2 * 2 + 4


def test_branches_that_read_one_norm_are_searched_by_the_layer():
    decoder = architecture("phi")
    fed = feeds(decoder, sites(decoder))
    number = NumberFormat(4, 8, symmetric=False, scale="float16")
    searched = search(decoder, windows(decoder), fed, sites(decoder), number, grid=2, clip=True)
    assert all(last <= first for first, last in searched.errors.values())


def test_part_of_the_linear_layers_alone(ids):
    decoder = tiny_decoder("llama", layers=2)
    method = Awq(linears=("*.up_proj", "*.o_proj"), layers=(1,), head=True, bits=4, **SMALL)
    dense, state = logits(decoder, ids), method.prepare(decoder, TEXT)
    assert {name for name in state.tensors if name.startswith("scale.")} == {"scale.model.layers.1.mlp.gate_proj"}
    with method.attach(decoder, state):
        assert sum(kernel_counts(decoder).values()) == 3
        assert not torch.equal(logits(decoder, ids), dense)
    assert torch.equal(logits(decoder, ids), dense)


def test_a_model_that_cannot_be_scaled_is_refused_before_anything_runs():
    with pytest.raises(UnsupportedModelError, match=r"Olmo2.*without a norm"):
        parse("awq:group=16").check_model(lambda: tiny_decoder("olmo2"))
    parse("awq:bits=16").check_model(lambda: tiny_decoder("olmo2"))
