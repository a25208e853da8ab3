"""Drafts that are verified leave the text dense's, whatever they guess; what cannot be verified is refused."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, StaticCache, StoppingCriteria

from harness.contract.decoder import Row
from harness.core.errors import MethodError
from harness.measure.serve import CostRequest, serve
from harness.model.speculation.drafts import SelfDraft, StatefulDraft
from harness.model.speculation.verification import speculated
from harness.model.surgery import without_blocks
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import usual

STEPS = 20
"""With the prompt, longer than the sliding windows."""


@pytest.fixture(scope="module")
def llama():
    return tiny_decoder("llama")


@pytest.fixture(scope="module")
def prompt():
    """Token ids of shape [1, 12]."""
    return torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(1))


def write(decoder, ids, steps=STEPS, **options):
    options = {"attention_mask": torch.ones_like(ids), "min_new_tokens": steps, **options}
    return decoder.module.generate(
        ids, max_length=ids.shape[1] + steps, do_sample=False, pad_token_id=0, **options
    ).tolist()


class Recorder:
    """Tokens of each forward."""

    def __init__(self, decoder):
        self.decoder, self.tokens = decoder, []

    def __enter__(self):
        def note(module, args, kwargs):
            self.tokens.append(kwargs["input_ids"].shape[1])

        self.handle = self.decoder.module.register_forward_pre_hook(note, with_kwargs=True)
        return self.tokens

    def __exit__(self, *_):
        self.handle.remove()


def known(answer, every=1):
    """Guesses of a known answer, each ``every``-th of which is wrong."""

    def draft(context, count):
        places = range(len(context), min(len(context) + count, len(answer)))
        return [answer[place] if (place + 1) % every or every == 1 else 5 for place in places]

    return draft


@usual
def test_a_text_is_dense_whatever_is_guessed(decoder, prompt):
    (dense,) = write(decoder, prompt)
    drafts = [known(dense), known(dense, 3), lambda context, count: [7] * count, lambda context, count: []]
    for draft in (*drafts, SelfDraft(decoder, partial(without_blocks, decoder, [2])), SelfDraft(decoder, nullcontext)):
        with speculated(decoder, draft, 4):
            assert write(decoder, prompt) == [dense]


def test_right_guesses_are_written_in_few_forwards(llama, prompt):
    (dense,) = write(llama, prompt)
    with speculated(llama, known(dense), 4), Recorder(llama) as tokens:
        write(llama, prompt)
    assert tokens == [12, 5, 5, 5, 4]  # 1 + 5 + 5 + 5 + 4 tokens written
    with speculated(llama, lambda context, count: [7] * count, 4), Recorder(llama) as tokens:
        write(llama, prompt)
    assert tokens == [12, *[5] * 15, 4, 3, 2, 1]


def test_the_whole_model_as_its_own_draft_is_always_right(llama, prompt):
    with speculated(llama, SelfDraft(llama, nullcontext), 3), Recorder(llama) as tokens:
        write(llama, prompt, 13)
    # a draft of three: its unread tokens and two more forwards, then the verification
    assert tokens == [12, 13, 1, 1, 4, 2, 1, 1, 4, 2, 1, 1, 4]


def test_a_draft_starts_anew_with_each_text(llama, prompt):
    begun = []

    class Draft(StatefulDraft):
        def begin(self):
            begun.append([])

        def __call__(self, context, count):
            begun[-1].append((len(context), count))
            return []

    with speculated(llama, Draft(), 4):
        write(llama, prompt, 3)
        write(llama, prompt[:, 2:], 3)
    assert begun == [[(13, 1)], [(11, 1)]]


def test_padding_is_no_part_of_a_drafts_context(llama, prompt):
    contexts = []
    mask = torch.ones_like(prompt)
    mask[:, :3] = 0
    dense = write(llama, prompt, attention_mask=mask)
    with speculated(llama, lambda context, count: contexts.append(context) or [7], 4):
        assert write(llama, prompt, attention_mask=mask) == dense
    assert contexts[0] == dense[0][3:13]


def test_a_text_ends_where_dense_ends(llama, prompt):
    """At the same token, also where it was guessed and more with it; a look-back of one token misses nothing."""
    (dense,) = write(llama, prompt)
    end = dense[12 + 6]

    class Stop(StoppingCriteria):
        def __init__(self):
            self.seen = []

        def __call__(self, input_ids, scores, **_):
            self.seen.append(input_ids.shape[1])
            return input_ids[:, -1] == end

    for options in ({"eos_token_id": end, "min_new_tokens": 0}, {"stopping_criteria": [Stop()]}):
        (expected,) = write(llama, prompt, **options)
        assert len(expected) == 12 + 1 + dense[12:].index(end)
        with speculated(llama, known(dense), 5):
            assert write(llama, prompt, **options) == [expected]
    seen = options["stopping_criteria"][0].seen
    assert seen == [*range(13, len(expected) + 1)] * 2  # of dense, then of the draft


def test_logits_processors_see_the_text_before_each_token(llama, prompt):
    class Never(LogitsProcessor):
        """No token twice, by what it was shown so far."""

        def __init__(self):
            self.shown = []

        def __call__(self, input_ids, scores):
            self.shown.append(input_ids.shape[1])
            return scores.scatter(1, input_ids, -torch.inf)

    dense, draft = Never(), Never()
    (expected,) = write(llama, prompt, logits_processor=[dense])
    with speculated(llama, known(expected, 4), 5):
        assert write(llama, prompt, logits_processor=[draft]) == [expected]
    assert draft.shown == dense.shown
    assert write(llama, prompt) != [expected]


def test_a_cache_of_the_caller_is_left_as_dense_leaves_it(llama, prompt):
    caches = DynamicCache(config=llama.config), DynamicCache(config=llama.config)
    (dense,) = write(llama, prompt, past_key_values=caches[0])
    with speculated(llama, known(dense, 4), 5):
        write(llama, prompt, past_key_values=caches[1])
    for one, other in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(one.keys, other.keys)


def test_tokens_of_a_verification_arrive_together(llama, prompt):
    (dense,) = write(llama, prompt)
    request = CostRequest("task", 0, tuple(prompt[0].tolist()), 12, 11, most=STEPS)
    with speculated(llama, known(dense), 4):
        served = serve(llama, request)
    assert served.tokens == (1, 6, 11)
    assert served.tpot == pytest.approx((served.times[-1] - served.times[0]) / 10)
    assert serve(llama, request).tokens == tuple(range(1, 12))


def test_the_context_says_what_a_forward_is_for(llama, prompt):
    parts = []
    hook = llama.module.register_forward_pre_hook(
        lambda module, args, kwargs: parts.append((llama.context.speculating, kwargs["input_ids"].shape[1])),
        with_kwargs=True,
    )
    draft = SelfDraft(llama, partial(without_blocks, llama, [1]))
    with llama.serving([Row("task", 0, (0,), 12, 12)], "generate"), speculated(llama, draft, 2):
        write(llama, prompt, 4)
    hook.remove()
    assert parts[:4] == [(None, 12), ("draft", 13), ("draft", 1), ("verify", 3)]


def test_it_restores_generate(llama, prompt):
    before = model_snapshot(llama)
    with pytest.raises(MethodError), speculated(llama, lambda *_: [999], 4):
        write(llama, torch.tensor([[3, 4]]))
    assert "generate" not in vars(llama.module)
    assert not changes(before, model_snapshot(llama))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([3, 300], "mine: a draft has token 300, and the model's tokens are 0 to 258: it is of another vocabulary"),
        ([-1], "token -1"),
        ([4] * 5, "mine: a draft has 5 tokens where 4 at most were asked for"),
        ("the next", "a list of token ids, or a tensor of them, \\[tokens\\], not 'the next'"),
        ([1.5], "not \\[1.5\\]"),
        ([True], "not \\[True\\]"),
        (None, "not None"),
        (torch.tensor([[3, 4]]), "not tensor\\(\\[\\[3, 4\\]\\]\\)"),
        (torch.tensor([3.0]), "not tensor\\(\\[3.\\]\\)"),
        (torch.tensor([999]), "another vocabulary"),
        (torch.tensor([3, 4], device="meta"), "not tensor\\(.*device='meta'"),
        (torch.tensor([3, 4]).to_sparse(), "not tensor\\(indices"),
        (torch.nested.nested_tensor([torch.arange(3)]), "not nested_tensor"),
    ],
)
def test_a_draft_that_is_none_is_refused(llama, prompt, given, says):
    with speculated(llama, lambda context, count: given, 4, "mine"), pytest.raises(MethodError, match=says):
        write(llama, prompt)


@pytest.mark.parametrize(
    ("draft", "tokens", "says"),
    [
        (5, 4, "mine: a draft is called for each verification, and 5 cannot be"),
        (None, 4, "and None cannot be"),
        (print, "3", "mine: tokens is how many are guessed at most, a whole number from 0 on, not '3'"),
        (print, -2, "not -2"),
        (print, None, "not None"),
        (print, 2.5, "not 2.5"),
        (print, True, "not True"),
    ],
)
def test_what_it_cannot_draft_with_is_refused(llama, draft, tokens, says):
    with pytest.raises(MethodError, match=says), speculated(llama, draft, tokens, "mine"):
        pass


def test_a_tensor_of_tokens_is_a_draft(llama, prompt):
    (dense,) = write(llama, prompt)
    with speculated(llama, lambda *args: torch.tensor(known(dense)(*args), dtype=torch.int32), 4):
        assert write(llama, prompt) == [dense]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"do_sample": True},
            "mine drafts for greedy decoding, and sample was asked for: give --gen_kwargs do_sample=",
        ),
        ({"num_beams": 2}, "beam search was asked for"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation was asked for"),
        ({"use_cache": False}, "mine verifies drafts against a cache"),
        ({"return_dict_in_generate": True}, "mine gives tokens alone"),
        ({"cache_implementation": "static"}, "mine: rejected tokens must leave the cache.*StaticCache of StaticLayer"),
    ],
)
def test_what_cannot_be_verified_is_refused(llama, prompt, options, says):
    options = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": 0, **options}
    with speculated(llama, known([]), 4, "mine"), pytest.raises(MethodError, match=says):
        llama.module.generate(prompt, **options)


def test_a_batch_is_refused(llama, prompt):
    with speculated(llama, known([]), 4, "mine"), pytest.raises(MethodError, match=r"for one row, and the batch has 2"):
        llama.module.generate(prompt.expand(2, -1), do_sample=False, max_new_tokens=4, pad_token_id=0)


def test_caches_that_give_nothing_back_are_refused(llama, prompt):
    class Keeps(DynamicCache):
        def crop(self, tokens_to_remove):
            """As a cache whose contents and length are apart."""

    with speculated(llama, lambda *_: [7], 4, "mine"):
        for cache in (StaticCache(llama.config, 64), Keeps(config=llama.config)):
            with pytest.raises(MethodError, match=f"mine: rejected.*{type(cache).__name__}"):
                write(llama, prompt, past_key_values=cache)


def test_two_drafts_are_refused(llama):
    with (
        speculated(llama, known([]), 4, "mine"),
        pytest.raises(MethodError, match="yours: another method drafts already"),
        speculated(llama, known([]), 4, "yours"),
    ):
        pass


def test_places_where_rounding_may_choose_are_counted(llama, prompt, caplog):
    class Tied(LogitsProcessor):
        """The second best token of one place is as good as the best, but for less than rounding."""

        def __call__(self, input_ids, scores):
            if input_ids.shape[1] == 15:
                best, second = scores.topk(2).indices[0]
                scores[0, second] = scores[0, best] - 1e-5
            return scores

    with speculated(llama, known([]), 4, "mine"):
        write(llama, prompt, 6)
        assert not caplog.records
        write(llama, prompt, 6, logits_processor=[Tied()])
        write(llama, prompt, 6, logits_processor=[Tied()])  # the same place once more
    (record,) = caplog.records
    assert "mine: a token was written whose logit lies so close" in record.message
