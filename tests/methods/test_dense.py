"""The baseline changes nothing and says so."""

import torch

from harness.contract.facts import Savings
from harness.contract.families import Family
from harness.contract.prepared import Prepared
from harness.methods.dense import Dense
from harness.testing.tiny import tiny_decoder


def test_dense_is_the_model():
    decoder, ids = tiny_decoder("llama"), torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = decoder.module(ids).logits
        with Dense().attach(decoder, Prepared()):
            assert torch.equal(decoder.module(ids).logits, expected)


def test_dense_declares_itself():
    method = Dense()
    assert (method.label, method.params()) == ("dense", {})
    assert (method.family, method.savings, method.exact) == (Family.BASELINE, Savings.NONE, True)
    assert not method.needs_preparation
