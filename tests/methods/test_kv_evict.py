"""Eviction: what each score keeps, by references that are written out, and what it is given to decide from."""

import math

import pytest
import torch

from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import MethodError, UnsupportedModelError
from harness.methods.cache.kv_evict import KvEvict
from harness.model.attention import observing
from harness.model.cache.pressed import pressed
from harness.testing.tiny import tiny_decoder
from tests.methods.caches import caches, flops

SCORERS = ("snapkv", "knorm", "h2o", "tova", "expected-attention")


def kept(layer):
    return layer.stored().tolist()


@torch.no_grad()
def attention(family, ids):
    """The model's own attention, [rows, heads, queries, keys] by layer, and its dense cache."""
    decoder = tiny_decoder(family, layers=2, attention="eager")
    output = decoder.module(ids, use_cache=True, output_attentions=True)
    return [layer.unflatten(1, (layer.shape[1] // 2, 2)) for layer in output.attentions], output.past_key_values


def best(scores, count):
    return scores.topk(count, -1).indices.sort(-1).values.tolist()


def test_knorm_keeps_the_keys_of_least_norm(ids):
    dense, cache = caches(KvEvict(scorer="knorm", budget=0.25), ids)
    for whole, layer in zip(dense.layers, cache.layers, strict=True):
        assert kept(layer) == best(-whole.keys.norm(dim=-1), 3)
        keys = whole.keys.gather(2, layer.positions.long()[..., None].expand(-1, -1, -1, 8))
        assert torch.equal(layer.keys, keys)


def test_of_little_stays_one_entry(ids):
    for scorer in SCORERS:
        _, cache = caches(KvEvict(scorer=scorer, budget=0.01), ids)
        assert {layer.keys.shape[2] for layer in cache.layers} == {1}


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_h2o_keeps_the_last_and_what_received_most(ids, family):
    given, _ = attention(family, ids)
    _, cache = caches(KvEvict(scorer="h2o", budget=0.5), ids, family=family)
    for weights, layer in zip(given, cache.layers, strict=True):
        heads = layer.keys.shape[1]
        scores = weights.flatten(1, 2).unflatten(1, (heads, -1)).sum((2, 3))  # [rows, kv heads, keys]
        scores[..., -3:] = torch.inf
        assert kept(layer) == best(scores, 6)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_tova_keeps_the_same_in_all_heads_by_the_last_query(ids, family):
    given, _ = attention(family, ids)
    _, cache = caches(KvEvict(scorer="tova", budget=0.5), ids, family=family)
    for weights, layer in zip(given, cache.layers, strict=True):
        scores = weights.flatten(1, 2)[:, :, -1].mean(1)  # [rows, keys]
        scores[:, -1] = torch.inf
        assert kept(layer) == [[row] * layer.keys.shape[1] for row in best(scores, 6)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_snapkv_keeps_its_window_and_what_that_attends_to_with_its_neighbours(ids, family):
    given, _ = attention(family, ids)
    _, cache = caches(KvEvict(scorer="snapkv", budget=0.5, window=3), ids, family=family)
    for index, (weights, layer) in enumerate(zip(given, cache.layers, strict=True)):
        if layer.is_sliding:
            continue  # its weights are those of the dense window, and it holds fewer entries
        received = weights.flatten(1, 2)[:, :, -3:, :-3].mean(2)  # [rows, heads, earlier keys]
        pooled = torch.stack([received[..., max(place - 2, 0) : place + 3].sum(-1) / 5 for place in range(9)], -1)
        scores = pooled.unflatten(1, (layer.keys.shape[1], -1)).mean(2)
        expected = [[[*places, 9, 10, 11] for places in row] for row in best(scores, 3)]
        assert kept(layer) == expected, index


def test_a_window_that_is_more_than_the_budget_keeps_the_latest_of_it(ids):
    _, cache = caches(KvEvict(budget=0.25, window=32), ids)
    assert {tuple(places) for layer in cache.layers for row in kept(layer) for places in row} == {(9, 10, 11)}


@torch.no_grad()
def test_expected_attention_is_that_of_gaussian_queries_at_positions_to_come(ids):
    """By matrices: the mean rotation of the next 512 positions, on the mean and covariance of unrotated queries."""
    decoder = tiny_decoder("llama", layers=2)
    hidden = []
    for block in decoder.anatomy.blocks:
        block.attention.modules[0].q_proj.register_forward_hook(lambda module, args, output: hidden.append(output))
    dense = decoder.module(ids, use_cache=True).past_key_values
    _, cache = caches(KvEvict(scorer="expected-attention", budget=0.5), ids)
    cosines, sines = decoder.module.model.rotary_emb(hidden[0], torch.arange(12, 12 + 512)[None])
    swap = torch.zeros(8, 8)
    swap[4:, :4], swap[:4, 4:] = torch.eye(4), -torch.eye(4)
    turn = (cosines[0][:, None] * torch.eye(8) + sines[0][:, None] * swap).mean(0)  # [width, width]
    for queries, whole, layer in zip(hidden, dense.layers, cache.layers, strict=True):
        queries = queries.unflatten(-1, (4, 8)).transpose(1, 2)[:, :, 4:]  # [rows, heads, tokens but the first, width]
        mean = queries.mean(2, keepdim=True)
        covariance = turn @ ((queries - mean).mT @ (queries - mean) / 8) @ turn.T
        keys = whole.keys[:, :, 4:].repeat_interleave(2, 1)
        scores = (keys @ (mean @ turn.T).mT)[..., 0] / math.sqrt(8)
        scores += torch.einsum("bhni,bhij,bhnj->bhn", keys, covariance, keys) / 8 / 2
        share = scores.softmax(-1).unflatten(1, (2, 2)).mean(2) * whole.values[:, :, 4:].norm(dim=-1)
        expected = [[[0, 1, 2, 3, *(place + 4 for place in places)] for places in row] for row in best(share, 2)]
        assert kept(layer) == expected


@torch.no_grad()
@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "gpt_neox", "olmo2", "phi3", "qwen3"])
def test_turned_queries_are_those_of_later_positions(ids, family):
    """A text that is read three positions further on has these very queries, whatever the architecture turns."""
    decoder, read = tiny_decoder(family, layers=2), {}

    def choose(entries):
        read[entries.layer] = entries.product, entries.queries
        return entries.ends(len(entries), 0)

    places = torch.arange(12).expand(2, -1)
    with pressed(decoder, choose, name="mine", reads_queries=True):
        decoder.module(ids, position_ids=places, use_cache=True)
    product, queries = read[0]
    later, moved = product.later(queries, 3)[:, :, -1], []
    for step in (1, 2, 3):  # of the last token, whose position moves on by each step
        with observing(decoder, lambda layer, queries, keys: moved.append(queries[:, :, -1]) if layer == 0 else None):
            decoder.module(ids, position_ids=places + step)
    torch.testing.assert_close(later, torch.stack(moved).mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scorer", SCORERS)
def test_the_products_of_a_score_are_counted(ids, scorer):
    counted, seen = flops(KvEvict(scorer=scorer, budget=0.5, window=3), ids[:1])
    assert counted == seen


def test_budgets_fall_in_a_pyramid_around_the_same_mean(ids):
    _, cache = caches(KvEvict(scorer="knorm", budget=0.5, pyramid=4), ids, layers=3)
    assert [layer.keys.shape[2] for layer in cache.layers] == [10, 6, 2]  # of 12: 7/8 to 1/8 of all
    _, cache = caches(KvEvict(scorer="knorm", budget=0.75, pyramid=20), ids, layers=3)
    assert [layer.keys.shape[2] for layer in cache.layers] == [12, 9, 6]  # no layer keeps more than there is
    _, cache = caches(KvEvict(scorer="knorm", budget=0.5, pyramid=20), ids, layers=1)
    assert cache.layers[0].keys.shape[2] == 6


@pytest.mark.parametrize("scorer", SCORERS)
def test_what_went_never_comes_back(ids, scorer):
    _, before = caches(KvEvict(scorer=scorer, budget=0.5, window=2), ids)
    _, after = caches(KvEvict(scorer=scorer, budget=0.5, window=2), ids, steps=3)
    for first, last in zip(before.layers, after.layers, strict=True):
        assert torch.equal(last.positions[..., :6], first.positions)
        assert (last.positions[..., 6:] == torch.tensor([12, 13, 14])).all()
        assert torch.equal(last.keys[:, :, :6], first.keys)


@torch.no_grad()
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_a_row_keeps_in_a_batch_what_it_keeps_alone(scorer, family):
    """With padding on the left, sliding layers, and budgets that differ from layer to layer."""
    method = KvEvict(scorer=scorer, budget=0.5, window=2, pyramid=3)
    decoder, ids = tiny_decoder(family), torch.randint(3, 259, (2, 14), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, "output_logits": True}
    options |= {"return_dict_in_generate": True}
    with method.attach(decoder, Prepared()):
        both = decoder.module.generate(ids * mask, attention_mask=mask, **options)
        alone = decoder.module.generate(ids[1:, 4:], **options)
    torch.testing.assert_close(torch.stack(both.logits)[:, 1], torch.stack(alone.logits)[:, 0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("budget=0", "budget='0' is not valid"),
        ("budget=1.5", "budget='1.5' is not valid: .*less than or equal to 1"),
        ("budget=-1", "budget='-1' is not valid"),
        ("window=0", "window='0' is not valid"),
        ("pyramid=0.5", "pyramid='0.5' is not valid"),
        ("scorer=best", "scorer='best' is not valid: .*'snapkv', 'knorm', 'h2o', 'tova' or 'expected-attention'"),
    ],
)
def test_what_is_no_budget_is_refused(given, says):
    with pytest.raises(MethodError, match=f"^kv-evict: {says}"):
        parse(f"kv-evict:{given}")


def test_a_score_that_undoes_rotation_is_refused_where_that_was_not_compared():
    decoder = tiny_decoder("llama", layers=1)
    decoder.module.config.model_type = "cohere"
    with pytest.raises(UnsupportedModelError, match="compared on these architectures alone: gemma, "):
        KvEvict(scorer="expected-attention").check_model(decoder)
    KvEvict().check_model(decoder)
