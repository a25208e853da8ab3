"""The audit agrees with the formulas for dense models, and shows what they miss."""

import pytest
import torch
from torch import nn

from harness.measure.audit import audit, count_flops
from harness.measure.trace import Tracer
from harness.testing.tiny import tiny_decoder


@pytest.fixture
def model():
    return tiny_decoder("llama")


def ratio(model, served):
    """Score one text under the audit."""
    ids = torch.full((1, 8), 5)
    with Tracer(model) as tracer, model.serving(*served):

        def serve():
            model.module(ids)
            return [segment for row in tracer.collect() for segment in row]

        return audit(model, serve).ratio


def test_dense_agrees(model, batch):
    assert ratio(model, batch("score", 8)) == 1.0


def test_work_that_no_part_of_the_model_does_shows(model, batch):
    matrix = torch.randn(259, 259)

    def multiply(module, args, output):
        output.logits @ matrix

    model.module.register_forward_hook(multiply)
    assert ratio(model, batch("score", 8)) > 1.0


def test_a_linear_that_claims_more_than_it_does_shows(model, batch):
    model.module.model.layers[0].mlp.up_proj.macs_per_token = 10**6
    assert ratio(model, batch("score", 8)) < 1.0


def test_nothing_to_audit_is_an_error(model):
    with pytest.raises(ValueError, match="nothing ran"):
        audit(model, list)


@pytest.mark.parametrize("heads", [4, 2])
def test_fused_attention_on_a_cpu_is_counted(heads):
    query, key = torch.rand(2, 4, 5, 8), torch.rand(2, heads, 9, 8)
    _, counted = count_flops(lambda: nn.functional.scaled_dot_product_attention(query, key, key, enable_gqa=heads == 2))
    assert counted == 2 * 2 * (2 * 4 * 5 * 9 * 8)


def test_counting_inside_counting(model):
    ids = torch.full((1, 8), 5)
    _, alone = count_flops(lambda: model.module(ids))
    (_, inner), outer = count_flops(lambda: count_flops(lambda: model.module(ids)))
    assert inner == outer == alone


def test_a_failure_ends_the_counting(model):
    ids = torch.full((1, 8), 5)
    _, before = count_flops(lambda: model.module(ids))
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: model.module(ids) and 1 / 0)
    assert count_flops(lambda: model.module(ids))[1] == before
