"""N-gram drafts are those of transformers' prompt lookup, and so are the answers."""

import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from harness.contract.prepared import Prepared
from harness.methods.lossless.ngram import NGram, lookup
from harness.testing.serve import TEXTS
from harness.testing.tiny import tiny_decoder


@pytest.mark.parametrize(
    ("text", "count", "longest", "draft"),
    [
        ([1, 2, 3, 4, 1, 2], 8, 3, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 1, 3, [3]),
        ([5, 2, 9, 1, 2, 3, 1, 2], 2, 3, [3, 1]),  # two tokens found before one that came earlier
        ([5, 2, 9, 1, 2, 3, 1, 2], 2, 1, [9, 1]),
        ([7, 7], 8, 3, [7]),
        ([1, 2, 3], 8, 3, []),
        ([1], 8, 3, []),
    ],
)
def test_what_followed_the_last_tokens_is_the_draft(text, count, longest, draft):
    assert lookup(text, count, longest) == draft


@pytest.mark.parametrize(
    ("text", "count", "draft"),
    [
        ([1, 2, 3, 1, 2, 4, 1, 2], 2, [4, 1]),
        ([1, 2, 9, 1, 2], 5, [9, 1, 2, 9, 1]),
        ([5, 7, 7], 3, [7, 7, 7]),
        ([4, 1, 2, 8, 2], 2, [8, 2]),
        ([1, 2, 3], 8, []),
    ],
)
def test_the_latest_match_goes_on_in_the_draft(text, count, draft):
    assert lookup(text, count, 3, "latest") == draft


@pytest.mark.parametrize("count", [1, 4, 10])
@pytest.mark.parametrize("longest", [1, 2, 3, 5])
def test_drafts_are_those_of_transformers(count, longest):
    reference = PromptLookupCandidateGenerator(
        num_output_tokens=count, max_matching_ngram_size=longest, max_length=10**6
    )
    generator = torch.Generator().manual_seed(count * 10 + longest)
    for length in range(1, 40):
        ids = torch.randint(0, 6, (1, length), generator=generator)
        candidates, _ = reference.get_candidates(ids)
        assert lookup(ids[0].tolist(), count, longest) == candidates[0, length:].tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_answers_are_those_of_transformers_and_of_dense(family):
    decoder = tiny_decoder(family)
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    for text in TEXTS[:2]:
        ids = torch.tensor([text.prompt])
        dense, reference = (
            decoder.module.generate(ids, attention_mask=torch.ones_like(ids), **options, **more)
            for more in ({}, {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 2})
        )
        with NGram(tokens=6, longest=2).attach(decoder, Prepared()):
            written = decoder.module.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert torch.equal(written, dense)
        assert torch.equal(written, reference)
