"""Paths are read off what ran: through the engine, the tracer, and back to the paths that went in."""

import pytest
import torch

from harness.contract.decoder import Row
from harness.measure.routes import path_of, routes
from harness.measure.trace import Tracer
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.surgery import without_branches
from harness.testing.tiny import tiny_decoder

PATHS = ((1, 1, 1, 1), (0, 1, 2, 1), (0, 1, 1, 0))


def served(decoder, kind="generate"):
    ids = torch.randint(3, 259, (3, 8), generator=torch.Generator().manual_seed(0))
    rows = [Row("t", i, (0,), 8, 8) for i in range(3)]
    with Tracer(decoder) as tracer, torch.no_grad(), decoder.serving(rows, kind):
        decoder.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, min_new_tokens=4)
        return tracer.collect()


def test_the_paths_that_ran_are_found_with_what_a_batch_reads():
    decoder = tiny_decoder("llama")
    with routed(decoder, FixedPaths(PATHS)):
        traced = served(decoder)
    assert tuple(map(path_of, traced)) == PATHS
    found = routes(traced)
    assert found["distinct"] == 3
    assert found["identity"] == pytest.approx(1 / 3)
    assert found["entropy"] == pytest.approx(1.584963)
    assert found["common"]["0121"] == pytest.approx(1 / 3)
    # passes over the layers, by any row: 1, 1, 2, 1 of 4
    assert found["union_prefill"] == found["union_decode"] == pytest.approx(5 / 4)


def test_dense_is_one_path():
    found = routes(served(tiny_decoder("gpt2")))
    assert found["common"] == {"1111": 1.0}
    assert found["identity"] == found["union_decode"] == 1.0
    assert found["entropy"] == 0.0


def test_a_layer_without_its_attention_is_no_path_of_layers():
    decoder = tiny_decoder("llama")
    with without_branches(decoder, attention=(1,)):
        assert routes(served(decoder)) is None
    assert routes([]) is None
