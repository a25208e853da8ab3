"""Tiny decoders are the same for a seed, disturb nothing, and come with a tokenizer that takes any text."""

import random

import pytest
import torch

from harness.testing.tiny import FAMILIES, tiny_decoder, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_the_weights_and_the_global_state_stays(family):
    torch.manual_seed(5)
    before, others = torch.get_rng_state(), random.getstate()
    decoder, same, different = tiny_decoder(family), tiny_decoder(family), tiny_decoder(family, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == others
    assert decoder.fingerprint == same.fingerprint != different.fingerprint
    assert not decoder.module.training
    assert decoder.module.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_options_are_taken(family):
    decoder = tiny_decoder(family, layers=3, attention="eager")
    assert decoder.config.num_hidden_layers == len(decoder.anatomy.blocks) == 3
    assert decoder.config._attn_implementation == "eager"


def test_configuration_fields_can_be_set():
    assert tiny_model("llama", hidden_size=64).config.hidden_size == 64


def test_any_text_encodes_and_decodes():
    tokenizer = tiny_tokenizer()
    for text in ("plain text", "  spaces\n\tand tabs", "Zürich, 東京 🙂", "</s>"):
        ids = tokenizer(text)["input_ids"]
        assert max(ids) < len(tokenizer)
        assert tokenizer.decode(ids) == text


def test_texts_pad_on_the_left():
    batch = tiny_tokenizer()(["ab", "a"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["input_ids"][1, 0] == tiny_tokenizer().pad_token_id == 0
