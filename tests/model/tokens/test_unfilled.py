"""Layers that later tokens never run are not filled: same logits, less work, a smaller cache; and positions."""

from types import SimpleNamespace

import pytest
import torch

from harness.contract.decoder import Row
from harness.core.errors import MethodError
from harness.measure.audit import count_flops
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.speculation.verification import speculated
from harness.model.surgery import without_branches
from harness.model.tokens.schedule import Schedule
from harness.model.tokens.token_depth import TokenPolicy, token_depth
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import usual
from tests.model.tokens.test_token_depth import PROMPT, STEPS, Table, cached, masked

WIDTH = PROMPT + STEPS


class Unfilled(Table):
    def fills(self, layer):
        return False


def falling(rows=3, layers=4):
    """Each row leaves each layer at a place of its own: within the prompt, in decode steps, or never."""
    places = torch.tensor([[0, 5, 10, WIDTH], [11, 13, 12, WIDTH], [WIDTH, WIDTH, 11, 12]])[:rows]  # [rows, layers]
    return torch.arange(WIDTH) < places.T[:layers, :, None]  # [layers, rows, positions]


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 259, (3, WIDTH), generator=torch.Generator().manual_seed(2))


@usual
def test_decoding_equals_masked_recomputation(decoder, ids):
    table = falling()
    with token_depth(decoder, Unfilled(table)):
        actual = cached(decoder, ids)
    torch.testing.assert_close(actual, masked(decoder, ids, table), rtol=0, atol=1e-5)


def test_it_equals_a_filled_layer(ids):
    decoder, table = tiny_decoder("llama"), falling()
    logits = []
    for policy in (Table, Unfilled):
        with token_depth(decoder, policy(table)):
            logits.append(cached(decoder, ids))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_that_all_rows_have_left_costs_nothing_more(family, ids):
    decoder, table = tiny_decoder(family), falling()
    table[0] = True
    rows = tuple(Row("", row, (0,), PROMPT, PROMPT) for row in range(3))
    lengths, totals = [], []
    for policy in (Unfilled, Table):
        with token_depth(decoder, policy(table)), Tracer(decoder) as tracer, decoder.serving(rows, "generate"):
            cache, counted = count_flops(lambda: prefill_and_decode(decoder, ids))
            segments = tracer.collect()
        shape = ModelShape.of(decoder)
        flops = [executed_flops(shape, row) for row in segments]
        assert sum(row.total for row in flops) == counted
        assert all(("fill" in row.extra) is (policy is Table) for row in flops)
        lengths.append([layer.keys.shape[-2] for layer in cache.layers])
        totals.append(counted)
    # layer 2 is left for good after position 11, layer 3 never; layer 1 by its last row never
    assert lengths == [[WIDTH, WIDTH, 12, WIDTH], [WIDTH] * 4]
    assert totals[0] < totals[1]


@torch.no_grad()
def prefill_and_decode(decoder, ids):
    cache = decoder.module(input_ids=ids[:, :PROMPT], use_cache=True).past_key_values
    for place in range(PROMPT, ids.shape[1]):
        decoder.module(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
    return cache


def test_a_layer_that_no_token_runs_is_left_out_of_a_prefill_too(ids):
    decoder, table, ran = tiny_decoder("llama"), falling(), []
    table[1] = False
    for block in decoder.anatomy.blocks:
        block.mlp.modules[-1].register_forward_hook(lambda *_, index=block.index: ran.append(index))
    with torch.no_grad(), token_depth(decoder, Unfilled(table)):
        decoder.module(input_ids=ids)
    assert ran == [0, 2, 3]


@pytest.mark.parametrize("family", ["gemma3_text", "mistral", "llama"])
def test_what_masks_are_measured_by_is_filled_all_the_same(family, ids):
    """The first layer of each kind of attention gives transformers positions and the sizes of masks."""
    decoder = tiny_decoder(family)
    table = torch.ones(4, 3, WIDTH, dtype=torch.bool)
    table[:3, :, PROMPT:] = False
    with token_depth(decoder, Unfilled(table)):
        actual = cached(decoder, ids)
    torch.testing.assert_close(actual, masked(decoder, ids, table), rtol=0, atol=1e-5)


@pytest.mark.parametrize("again", [3, PROMPT, PROMPT + 4])
def test_running_a_layer_that_was_left_is_refused(again, ids):
    """In the same forward as in a later one, by one row of several; a text that begins knows nothing of the last."""
    decoder, table = tiny_decoder("llama"), torch.ones(4, 3, WIDTH, dtype=torch.bool)
    table[2, 1, again - 2 :] = False
    with token_depth(decoder, Unfilled(table)):
        cached(decoder, ids)
    table[2, 1, again] = True
    message = "layer 2: a token runs it after an earlier one of its row skipped it"
    with token_depth(decoder, Unfilled(table)), pytest.raises(MethodError, match=message):
        cached(decoder, ids)
    policy = Unfilled(falling())
    with token_depth(decoder, policy):
        first = cached(decoder, ids)
        policy.seen = 0
        assert torch.equal(cached(decoder, ids), first)


def test_a_policy_that_says_all_run_is_held_to_it(ids):
    decoder, table = tiny_decoder("llama"), falling()

    class Forgets(Unfilled):
        def runs(self, layer, states):
            return None if self.seen > PROMPT + 5 else super().runs(layer, states)

    with token_depth(decoder, Forgets(table)), pytest.raises(MethodError, match="a token runs it after"):
        cached(decoder, ids)


def test_padding_on_the_right_leaves_no_layer(ids):
    """What a policy says of padding is nobody's: not predicting, it may be back in a layer."""
    decoder = tiny_decoder("llama")

    class Predicting(Unfilled):
        def begin(self, tokens):
            self.now = (~tokens.predicting).expand(4, -1, -1)

    rows = [Row("", 0, (0,), 5, 12), Row("", 1, (0,), 9, WIDTH), Row("", 2, (0,), 12, 14)]
    with decoder.serving(rows, "score"), token_depth(decoder, Predicting(falling())):
        decoder.module(input_ids=ids)


def test_a_layer_that_is_never_filled_may_have_lost_its_attention(ids):
    decoder, table = tiny_decoder("llama"), falling()
    with without_branches(decoder, attention=[2]):
        expected = masked(decoder, ids, table)
        with token_depth(decoder, Unfilled(table)):
            torch.testing.assert_close(cached(decoder, ids), expected, rtol=0, atol=1e-5)


def test_rejected_drafts_leave_no_layer(ids):
    """Tokens that a draft's verification takes back come again, at places where a layer still runs."""
    decoder = tiny_decoder("llama")
    schedule = Schedule([1, 2], lambda tokens: (tokens.positions >= PROMPT + 4).long() + (tokens.positions >= 16))
    options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
    prompt = ids[:1, :PROMPT]
    with token_depth(decoder, schedule):
        expected = decoder.module.generate(prompt, **options)
        with speculated(decoder, lambda context, count: [7] * count, 5):
            assert torch.equal(decoder.module.generate(prompt, **options), expected)


class Noting(TokenPolicy):
    def __init__(self):
        self.positions = []

    def begin(self, tokens):
        self.positions.append(tokens.positions.tolist())

    def runs(self, layer, states):
        return None


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gpt_neox"])
def test_positions_leave_padding_out(family, served, ids):
    decoder, policy = tiny_decoder(family), Noting()
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0
    rows = [Row("", row, (0,), length, length) for row, length in enumerate((6, 4))]
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with token_depth(decoder, policy), decoder.serving(rows, "generate", 6) if served else no_context():
        decoder.module.generate(ids[:2, :6], attention_mask=mask, **options)
    prompt, *steps = policy.positions
    assert prompt[0] == [0, 1, 2, 3, 4, 5]
    assert prompt[1][2:] == [0, 1, 2, 3]
    assert steps == [[[6], [4]], [[7], [5]]]


def no_context():
    return torch.no_grad()


def test_positions_of_scored_texts_and_of_a_cache_that_is_continued(ids):
    decoder, policy = tiny_decoder("llama"), Noting()
    rows = [Row("", 0, (0,), 2, 4), Row("", 1, (0,), 3, 5)]
    with torch.no_grad(), token_depth(decoder, policy):
        with decoder.serving(rows, "score"):
            decoder.module(input_ids=ids[:2, :5])
        cache = decoder.module(input_ids=ids[:1, :4], use_cache=True).past_key_values
        decoder.module(input_ids=ids[:1, 4:6], past_key_values=cache)
    assert policy.positions == [[[0, 1, 2, 3, 4]] * 2, [[0, 1, 2, 3]], [[4, 5]]]


def test_a_schedule_skips_the_first_of_its_layers_first():
    schedule = Schedule([3, 1], lambda tokens: tokens)
    schedule.begin(torch.tensor([[0, 1, 2], [0, 0, 1]]))
    states = SimpleNamespace()
    assert schedule.runs(0, states) is None
    assert schedule.runs(3, states).tolist() == [[True, False, False], [True, True, False]]
    assert schedule.runs(1, states).tolist() == [[True, True, False], [True, True, True]]
    schedule.begin(torch.zeros(2, 3, dtype=torch.long))
    assert schedule.runs(3, states) is None
