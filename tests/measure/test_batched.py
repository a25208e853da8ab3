"""Batches of a task's texts: which texts share one, how they are padded, and that skipped layers run fewer rows."""

from dataclasses import replace

import pytest
import torch

from harness.core.errors import NoRoomError
from harness.measure import batched
from harness.measure.batched import Batch, batches_of, require_room, serve_batch
from harness.measure.serve import CostRequest
from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.results.throughput import BATCHES
from harness.testing.tiny import tiny_decoder

LAYERS = 4
TEXTS = [CostRequest("t", n, tuple(range(3, 3 + n)), n, 0) for n in (9, 4, 7, 12, 5, 6, 8, 10, 11, 13)]
PROMPTS = [replace(text, new_tokens=3 + index % 2, most=8) for index, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def model():
    return tiny_decoder("llama", layers=LAYERS)


def lengths(batch):
    return [len(request.tokens) for request in batch.requests]


def test_neighbours_in_length_share_a_batch_and_batches_are_spread_over_the_lengths():
    batches = batches_of(TEXTS, 4)
    assert len(batches) == BATCHES
    assert lengths(batches[0]) == [4, 5, 6, 7]
    assert lengths(batches[-1]) == [10, 11, 12, 13]
    assert [batch.width for batch in batches] == sorted(batch.width for batch in batches)
    assert (batches[0].prompt_tokens, batches[0].pad_tokens) == (22, 6)
    assert {batch.new_tokens for batch in batches} == {0}
    assert [lengths(batch) for batch in batches_of(TEXTS, 1)] == [[4], [6], [8], [9], [11], [13]]


def test_texts_repeat_where_there_are_fewer_than_rows():
    batches = batches_of(TEXTS[:3], 8)
    assert all(len(batch.requests) == 8 for batch in batches)
    assert set(batches[0].requests) == set(TEXTS[:3])


def test_rows_write_as_many_tokens_as_the_longest_answer_where_all_may():
    assert {batch.new_tokens for batch in batches_of(PROMPTS, 2)} == {4}
    short = [replace(PROMPTS[0], most=3), *PROMPTS[1:]]
    assert {batch.new_tokens for batch in batches_of(short, 2)} == {3}


def test_what_is_asked_otherwise_is_in_no_batch_with_the_first():
    other = replace(PROMPTS[1], options={"temperature": 0.5, "do_sample": True})
    batches = batches_of([PROMPTS[0], other, TEXTS[2], PROMPTS[3]], 2)
    assert {request for batch in batches for request in batch.requests} == {PROMPTS[0], PROMPTS[3]}


@pytest.mark.parametrize("requests", [TEXTS, PROMPTS])
def test_rows_are_padded_as_an_evaluation_pads_them(model, requests):
    """Scored texts on the right by 0, prompts on the left, where a mask hides it; each row is declared as it is."""
    (batch, *_), seen = batches_of(requests, 3), []

    def look(module, args, kwargs):
        ids = args[0] if args else kwargs["input_ids"]
        seen.append((ids, kwargs.get("attention_mask"), model.context.rows, model.context.kind))

    handle = model.module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        served = serve_batch(model, batch)
    finally:
        handle.remove()
    ids, mask, rows, kind = seen[0]
    assert ids.shape == (3, batch.width)
    assert [row.length for row in rows] == lengths(batch)
    assert len(seen) == max(batch.new_tokens, 1) == len(served.times)
    for row, request in zip(range(3), batch.requests, strict=True):
        pad = batch.width - len(request.tokens)
        padding = [model.tokenizer.pad_token_id if batch.new_tokens else 0] * pad
        whole = [*padding, *request.tokens] if batch.new_tokens else [*request.tokens, *padding]
        assert ids[row].tolist() == whole
        if batch.new_tokens:
            assert mask[row].tolist() == [0] * pad + [1] * len(request.tokens)
    assert kind == ("generate" if batch.new_tokens else "score")
    assert model.context is None


@pytest.mark.parametrize("requests", [TEXTS[:8], PROMPTS[:8]])
def test_a_layer_runs_the_rows_that_chose_it_and_no_others(model, requests):
    """Of eight rows at half of the layers, each on a path of its own, half of the rows go through the modules."""
    paths = tuple(tuple((layer + row) % 2 for layer in range(LAYERS)) for row in range(8))
    (batch, *_) = batches_of(requests, 8)
    rows = []
    handles = [
        block.mlp.modules[0].register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
        for block in model.anatomy.blocks
    ]
    try:
        serve_batch(model, batch)
        dense, rows[:] = sum(rows), []
        with routed(model, FixedPaths(paths)):
            serve_batch(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    assert set(rows) == {4}
    assert sum(rows) == dense / 2


def test_what_no_memory_holds_is_a_sentence_and_leaves_nothing_behind(model, monkeypatch):
    (batch, *_) = batches_of(TEXTS, 2)

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(batched, "_serve", full)
    with pytest.raises(NoRoomError, match=r"a batch of 2 rows of 5 tokens: out of memory") as raised:
        serve_batch(model, batch)
    # an exception that is kept keeps the frames that it went through, and their tensors
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


def test_logits_that_are_more_than_is_free_are_not_tried(model):
    require_room(model, TEXTS, 64)
    with pytest.raises(NoRoomError, match=r"the logits of 1000000000000 rows take .* GB, and .* GB are free"):
        require_room(model, TEXTS, 10**12)


def test_a_batch_of_one_row_is_the_request_alone(model):
    batch = Batch((PROMPTS[0],), 3)
    assert (batch.width, batch.pad_tokens) == (9, 0)
    assert serve_batch(model, batch).tokens == (1, 2, 3)
