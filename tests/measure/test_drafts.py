"""What a record says of drafts equals a count by hand, of trace segments and of a generation."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from harness.contract.decoder import Row
from harness.measure.audit import count_flops
from harness.measure.drafts import drafts
from harness.measure.flops import executed_flops
from harness.measure.segment import Segment
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.speculation.drafts import SelfDraft
from harness.model.speculation.verification import speculated
from harness.model.surgery import without_blocks
from harness.testing.tiny import tiny_decoder

PROMPT = torch.randint(3, 259, (1, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def llama():
    return tiny_decoder("llama")


def segment(phase, queries, kept=None, share=1.0, forwards=1):
    return Segment(
        phase, queries, 0, 40, forwards, 1, (queries,) * 4, (queries,) * 4, 1, (share,) * 4, (share,) * 4, 1, kept=kept
    )


def test_drafts_are_counted_by_place(llama):
    shape = ModelShape.of(llama)
    segments = [
        segment("prefill", 9),
        segment("verify", 4, 3),  # two of three accepted
        segment("decode", 1, forwards=2),
        segment("verify", 3, 1),  # none of two
        segment("verify", 4, 4),  # all three
    ]
    of = drafts(shape, segments)
    assert (of.verifications, of.drafted, of.accepted, of.draft_flops) == (3, 8, 5, 0)
    assert of.tokens_per_verification == pytest.approx(8 / 3)
    assert of.acceptance == pytest.approx([2 / 3, 2 / 3, 1 / 2])
    assert of.passes_per_token == pytest.approx(5 / 10)
    guessing = segment("draft", 2, share=0.5, forwards=4)
    of = drafts(shape, [*segments, guessing])
    assert of.draft_flops == executed_flops(shape, [guessing]).total
    assert of.passes_per_token == pytest.approx((5 + 4 * 0.5) / 10)
    assert drafts(shape, [segment("prefill", 9), segment("decode", 1), replace(guessing)]) is None


def test_a_right_guess_that_ends_the_text_is_accepted(llama):
    shape, ended = ModelShape.of(llama), replace(segment("verify", 4, 2), ends_in_guess=True)
    assert Segment.from_json(ended.to_json()) == ended
    of = drafts(shape, [segment("prefill", 9), segment("verify", 4, 3), ended])
    assert (of.verifications, of.drafted, of.accepted, of.tokens_per_verification) == (2, 6, 4, 2.5)
    assert of.acceptance == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("guess", [True, False])
def test_the_end_of_a_text_within_a_draft_is_a_guess(llama, guess):
    _, _, dense = written(llama, lambda *_: [], 3)
    place = next(place for place in range(14, 32) if dense[place] not in dense[12:place])  # the third token or later
    options = {"max_new_tokens": 20, "eos_token_id": dense[place], "do_sample": False, "pad_token_id": 0}
    at = place - 13  # how many are written before the end after the prompt's own token

    def draft(text, count):
        return [] if len(text) < 13 else [*dense[13 : 13 + at], dense[place] if guess else dense[place] - 1, 5]

    rows = [Row("", 0, (0,), 12, 12)]
    with torch.no_grad(), speculated(llama, draft, at + 2), Tracer(llama) as tracer, llama.serving(rows, "generate"):
        assert llama.module.generate(PROMPT, **options)[0].tolist() == dense[: place + 1]
        of = drafts(ModelShape.of(llama), tracer.collect()[0])
    assert (of.verifications, of.accepted, of.tokens_per_verification) == (1, at + guess, at + 1)


@torch.no_grad()
def written(decoder, draft, tokens, steps=20):
    """What ran for a generation with drafts, PyTorch's count of its FLOPs, and its tokens."""
    rows = [Row("", 0, (0,), 12, 12)]
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "pad_token_id": 0}
    with speculated(decoder, draft, tokens), Tracer(decoder) as tracer, decoder.serving(rows, "generate"):
        ids, counted = count_flops(lambda: decoder.module.generate(PROMPT, **options))
        return tracer.collect()[0], counted, ids[0].tolist()


def test_a_generation_with_drafts_is_counted_as_the_operators_multiply(llama):
    shape = ModelShape.of(llama)
    _, _, dense = written(llama, lambda *_: [], 3)
    drafting = {
        "none": lambda text, count: [],
        "wrong": lambda text, count: [7] * count,
        "right": lambda text, count: dense[len(text) : len(text) + count],
        "own": SelfDraft(llama, partial(without_blocks, llama, [1, 2])),
    }
    for name, draft in drafting.items():
        segments, counted, ids = written(llama, draft, 3)
        assert ids == dense
        assert executed_flops(shape, segments).total == counted
        of = drafts(shape, segments)
        if name == "none":
            assert of is None
        elif name == "wrong":
            assert (of.accepted, of.verifications, of.passes_per_token) == (0, 18, 1.0)  # the last step drafts nothing
            assert of.acceptance == [0.0, 0.0, 0.0]
        elif name == "right":
            assert (of.verifications, of.accepted, of.acceptance) == (5, 14, [1.0, 1.0, 1.0])
            assert of.passes_per_token == pytest.approx(5 / 19)
        else:
            assert of.draft_flops > 0
            assert of.passes_per_token > of.verifications / 19
