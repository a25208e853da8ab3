"""The context says what a forward is for: a draft, its verification, or none of these."""

import pytest
import torch

from harness.contract.decoder import Row
from harness.core.errors import MethodError
from harness.testing.tiny import tiny_decoder


@pytest.fixture
def model():
    return tiny_decoder("llama", layers=1)


def test_drafts_count_as_nothing_processed(model):
    ids = torch.full((1, 4), 5)
    with torch.no_grad(), model.serving([Row("text", 0, (0,), 4, 4)], "generate") as context:
        with model.drafting():
            model.module(ids)
        assert (context.processed, context.decoding) == (0, False)
        model.module(ids)
        with model.verifying():
            assert context.speculating == "verify"
            with model.drafting():
                assert context.speculating == "draft"
            assert context.speculating == "verify"
            model.module(ids)
        assert context.speculating is None
        assert (context.processed, context.decoding) == (8, True)


def test_nothing_is_declared_where_nothing_is_served(model):
    with model.drafting(), model.verifying():
        assert model.context is None


def test_a_text_that_is_scored_is_decoded_where_it_is_said(model):
    ids = torch.full((1, 4), 5)
    with torch.no_grad(), model.serving([Row("text", 0, (0,), 4, 8)], "score") as context:
        model.module(ids)
        assert not context.decoding
        context.decoding = True
        model.module(ids)
        assert context.decoding


@pytest.mark.parametrize(
    ("kind", "charge", "message"),
    [
        ("mlp", {"macs": 3}, "of layer None; give the layer's index in the dense model, 0 to 0"),
        ("attention", {"macs": 3, "layer": 1}, "of layer 1; give the layer's index"),
        ("predictor", {"macs": -3}, "'predictor' is negative: -3 multiply-accumulates"),
        ("predictor", {"macs": 3, "bytes": -1.0}, "'predictor' is negative"),
    ],
)
def test_a_charge_that_cannot_be_is_refused(model, kind, charge, message):
    with pytest.raises(MethodError, match=message):
        model.charge(kind, **charge)
