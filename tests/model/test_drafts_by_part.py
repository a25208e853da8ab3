"""A part of the model drafts on the text's own cache: what is written, what runs, and what is refused."""

from functools import partial

import pytest
import torch
from transformers import DynamicCache

from harness.contract.decoder import Row
from harness.core.errors import MethodError, UnsupportedModelError
from harness.measure.audit import count_flops
from harness.measure.drafts import drafts
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.speculation.choice import chosen_part, speedup
from harness.model.speculation.drafts import SelfDraft, SharedDraft
from harness.model.speculation.part import drafted_by_part, measuring
from harness.model.speculation.verification import speculated
from harness.model.surgery import without_blocks, without_branches
from harness.model.tokens.confidence import SoftmaxResponse
from harness.model.tokens.exits import EarlyExit
from harness.model.tokens.token_depth import token_depth
from harness.testing.snapshot import changes, model_snapshot
from harness.testing.tiny import tiny_decoder
from tests.measure.test_drafts import PROMPT, written
from tests.model.conftest import usual

PARTS = ({"blocks": [2, 3]}, {"blocks": [2], "attentions": [3]})


@pytest.fixture
def llama():
    return tiny_decoder("llama")


@torch.no_grad()
def drafted(decoder, part, tokens, steps=20, prompt=PROMPT, **options):
    """What ran for a generation with drafts by a part, and its tokens."""
    rows = [Row("", 0, (0,), prompt.shape[1], prompt.shape[1])]
    options = {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "pad_token_id": 0, **options}
    with (
        drafted_by_part(decoder, **part) as draft,
        speculated(decoder, draft, tokens),
        Tracer(decoder) as tracer,
        decoder.serving(rows, "generate"),
    ):
        ids = decoder.module.generate(prompt, **options)
        return tracer.collect()[0], ids[0].tolist()


@usual
@torch.no_grad()
def test_a_text_is_dense_on_every_layout(decoder):
    options = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False, "pad_token_id": 0}
    dense = decoder.module.generate(PROMPT, **options)
    for part in PARTS:
        with drafted_by_part(decoder, **part) as draft, speculated(decoder, draft, 3):
            assert torch.equal(decoder.module.generate(PROMPT, **options), dense)


def test_what_runs_is_what_is_counted(llama):
    """Each draft runs its layers on one token, the verification the first ones on the last guess, the rest on all."""
    shape = ModelShape.of(llama)
    for part in PARTS:
        (segments, _), counted = count_flops(partial(drafted, llama, part, 3))
        assert executed_flops(shape, segments).total == counted
    segments, _ = drafted(llama, {"blocks": [2, 3]}, 3)
    cycle = [segment for segment in segments if segment.phase != "prefill"][:4]
    assert [segment.attention for segment in cycle] == [(1, 1, 0, 0)] * 3 + [(1, 1, 4, 4)]
    assert [(segment.queries, segment.context) for segment in cycle] == [(1, 13), (1, 14), (1, 15), (4, 16)]


def test_passes_over_the_weights_are_those_of_the_paper(llama):
    """(K E + L) / (n L), of cycles with K guesses."""
    segments, _ = drafted(llama, {"blocks": [1, 2, 3]}, 3, steps=60)
    record = drafts(ModelShape.of(llama), segments)
    of_cycles = sum(3 * 1 + 4 for segment in segments if segment.phase == "verify" and segment.queries == 4)
    shorter = sum(
        (segment.queries - 1) + 4 for segment in segments if segment.phase == "verify" and segment.queries < 4
    )
    single = sum(4 * segment.forwards for segment in segments if segment.phase == "decode")
    assert record.passes_per_token == pytest.approx((of_cycles + shorter + single) / 4 / 59)
    assert record.draft_flops > 0


def test_guesses_are_those_of_the_part(llama):
    """Of the model that the layers are really taken out of, which reads the text by its own cache."""
    own, shared = [], []
    _, _, dense = written(llama, lambda *_: [], 3)
    part = SelfDraft(llama, partial(without_blocks, llama, [2, 3]))
    with drafted_by_part(llama, blocks=[2, 3]) as draft:

        class Both(SharedDraft):
            """Asks both, and guesses nothing."""

            def __call__(self, context, count):
                draft.text = self.text
                shared.append(draft(context, count))
                own.append(part(context, count))
                return []

        with torch.no_grad(), speculated(llama, Both(), 3):
            ids = llama.module.generate(PROMPT, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    assert ids[0].tolist() == dense[: 12 + 12]
    assert shared == own


def test_padding_on_the_left_changes_nothing(llama):
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), PROMPT], 1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    with torch.no_grad():
        dense = llama.module.generate(padded, pad_token_id=0, **options)
        with drafted_by_part(llama, blocks=[2, 3]) as draft, speculated(llama, draft, 3):
            assert torch.equal(llama.module.generate(padded, pad_token_id=0, **options), dense)


def test_the_caches_of_all_layers_are_left_as_dense_leaves_them(llama):
    caches = [DynamicCache(config=llama.config) for _ in range(2)]
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        llama.module.generate(PROMPT, past_key_values=caches[0], **options)
        with drafted_by_part(llama, blocks=[1, 3]) as draft, speculated(llama, draft, 4):
            llama.module.generate(PROMPT, past_key_values=caches[1], **options)
    for dense, layer in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(dense.keys, layer.keys)
        torch.testing.assert_close(dense.values, layer.values)


def test_it_leaves_no_trace(llama):
    before = model_snapshot(llama)
    with pytest.raises(KeyError), drafted_by_part(llama, attentions=[2]):
        raise KeyError
    drafted(llama, {"attentions": [2, 3]}, 3, steps=5)
    assert not changes(before, model_snapshot(llama))


def test_a_layer_that_was_taken_out_before_is_in_no_draft(llama):
    with without_blocks(llama, [1]):
        _, _, dense = written(llama, lambda *_: [], 3)
        segments, ids = drafted(llama, {"blocks": [2, 3]}, 3)
    assert ids == dense
    assert next(segment for segment in segments if segment.phase == "draft").attention == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("family", "part", "says"),
    [
        ("llama", {"blocks": [0]}, "a draft needs the attention of layer 0, off which positions"),
        ("llama", {"attentions": [0, 2]}, "needs the attention of layer 0"),
        ("gemma2", {"blocks": [1]}, "needs the attention of layer 1"),
    ],
)
def test_what_a_draft_cannot_do_without_is_refused(family, part, says):
    with pytest.raises(MethodError, match=says), drafted_by_part(tiny_decoder(family), **part):
        pass


def test_a_model_that_is_not_compared_is_refused(llama):
    llama.module.config.model_type = "unknown"
    with pytest.raises(UnsupportedModelError, match="drafts by a part of the layers are not offered"):
        drafted_by_part(llama, blocks=[3]).__enter__()


def test_two_that_direct_layers_are_refused(llama):
    policy = EarlyExit(llama, SoftmaxResponse(llama), lambda *_: 0.9, [1])
    with token_depth(llama, policy), pytest.raises(MethodError, match="already directs the layers"):
        drafted_by_part(llama, blocks=[3]).__enter__()


def test_the_modelled_speedup_is_that_of_a_count_by_hand():
    agreement = [torch.tensor([True, True, False, True]), torch.tensor([False])]
    # the first guess is right at 3 of 5 places, two are at 1 of 3, three at none of 2
    assert speedup(agreement, 0.5, 1) == pytest.approx((1 + 3 / 5) / 1.5)
    assert speedup(agreement, 0.5, 2) == pytest.approx((1 + 3 / 5 + 1 / 3) / 2)
    assert speedup(agreement, 0.25, 3) == pytest.approx((1 + 3 / 5 + 1 / 3) / 1.75)


@pytest.mark.parametrize("unit", ["block", "attention"])
@torch.no_grad()
def test_the_chosen_part_saves_the_most_of_those_tried(llama, unit):
    windows = [PROMPT, PROMPT.flip(1)]
    best, tried = chosen_part(llama, windows, unit, 4)
    assert len(tried) == 3
    assert not set(best.out) & measuring(llama)
    whole = [llama.module(window).logits[0].argmax(-1) for window in windows]
    for part in tried:
        out = without_blocks(llama, part.out) if unit == "block" else without_branches(llama, attention=part.out)
        with out:
            agreement = [
                model == llama.module(window).logits[0].argmax(-1) for model, window in zip(whole, windows, strict=True)
            ]
        speedups = {draft: speedup(agreement, part.share, draft) for draft in range(1, 5)}
        assert part.speedup == speedups[part.draft] == max(speedups.values()) <= best.speedup
        assert part.right == pytest.approx(torch.cat(agreement).double().mean().item())
    assert [part.share for part in tried] == sorted((part.share for part in tried), reverse=True)
    if unit == "block":
        assert [part.share for part in tried] == pytest.approx([0.75, 0.5, 0.25])
