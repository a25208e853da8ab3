"""Arithmetic on segments against plain loops."""

import json
from dataclasses import replace

import pytest

from harness.measure.extra import Extra, Work
from harness.measure.segment import Segment, as_dense, depth, ran_as_dense, row_as_dense, unpadded

WINDOWS = [None, 1, 4, 6, 11, 100]


def forwards(segment):
    """(positions seen before, queries) of each forward."""
    first = segment.context - segment.queries
    return [(first + step * segment.queries, segment.queries) for step in range(segment.forwards)]


@pytest.fixture(params=[(5, 5, 1), (1, 1, 9), (1, 7, 12), (3, 8, 6), (20, 20, 1)], ids=str)
def segment(request, dense_segment):
    queries, context, count = request.param
    return dense_segment(4, queries, phase="decode", context=context, forwards=count)


@pytest.mark.parametrize("window", WINDOWS)
def test_attended_positions_are_those_of_the_cache(segment, window):
    expected = sum(
        window - 1 + queries if window and seen >= window else seen + queries for seen, queries in forwards(segment)
    )
    assert segment.attended(0, window) == expected
    assert segment.rectangle(0, window) == segment.queries * expected


@pytest.mark.parametrize("window", WINDOWS)
def test_causal_pairs_are_those_of_the_mask(segment, window):
    positions = [seen + query + 1 for seen, queries in forwards(segment) for query in range(queries)]
    assert segment.causal_pairs(window) == sum(min(position, window or position) for position in positions)


def test_pairs_of_a_partial_context_follow_the_formula(dense_segment):
    n, c = 7, 40
    assert dense_segment(1, n, context=c).causal_pairs() == n * c - n * (n - 1) // 2


def test_json_keeps_every_field(dense_segment):
    segment = dense_segment(
        6,
        3,
        padding=1,
        rows=3,
        checks=2,
        keys=(40, 40, 40, 7, 7, 40),
        held=(0, 0, 512, 512, 512, 9),
        kept=2,
        extra={"router": Extra(4, 1, 9, 0.5), "predictor": Extra(4, 2, 7, 1 / 3)},
        own={"mlp": {3: Work(10, 0.5), 1: Work(7)}, "scores": {0: Work(12)}, "cache": {0: Work(0, 96.0)}},
        attention=(3, 0, 0, 6, 3, 2),
        attention_reads=(1 / 3, 0.0, 0.0, 2.0, 1 / 3, 1.0),
    )
    assert Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment


def test_an_older_trace_has_its_added_work_in_fields(dense_segment):
    plain = dense_segment(2, 4).to_json()
    plain |= {"router": 4, "router_calls": 2, "router_macs": 9, "fill": [0, 3], "fill_macs": 7, "auxiliary_bytes": 2.5}
    assert Segment.from_json(plain).extra == {"router": Extra(4, 2, 9, 2.5), "fill": Extra(3, 0, 7)}
    del plain["router"], plain["router_calls"], plain["router_macs"]
    assert Segment.from_json(plain).extra == {"fill": Extra(3, 0, 7, 2.5)}


def test_a_deep_dense_segment_is_short_in_json(dense_segment):
    segment = dense_segment(32, 1, phase="decode", context=1025, forwards=255)
    assert len(json.dumps(segment.to_json())) < 250


def test_dense_work_is_recognised(dense_segment):
    prefill, decode = dense_segment(3, 8, head=8), dense_segment(3, 1, phase="decode")
    assert ran_as_dense([prefill, decode])
    skipped = replace(decode, mlp=(1, 0, 1))
    repeated = replace(decode, attention=(1, 2, 1))
    checked = replace(prefill, head=3, checks=2)
    for other in (skipped, repeated, checked):
        assert not ran_as_dense([prefill, other])


def test_depth_counts_a_branch_as_half_a_layer(dense_segment):
    prefill = dense_segment(4, 10, attention=(10, 0, 10, 0))
    decode = dense_segment(4, 1, phase="decode", forwards=5, attention=(1, 0, 0, 0), mlp=(1, 0, 0, 0))
    assert depth([prefill, decode], "prefill", "score").mean == 0.75
    assert depth([prefill, decode], "decode").mean == 0.25
    both = depth([prefill, decode], "prefill", "decode")
    assert (both.executed, both.dense) == (35, 60)


def test_depth_without_tokens_is_none(dense_segment):
    assert depth([dense_segment(4, 10)], "decode").mean is None


def test_padding_leaves_no_trace_in_useful_work(dense_segment):
    prefill = dense_segment(2, 10, padding=4, attention=(10, 20), mlp=(10, 3))
    decode = dense_segment(2, 1, phase="decode", context=11, forwards=5)
    next_prefill = dense_segment(2, 6)
    useful = unpadded([prefill, decode, next_prefill])
    assert useful == [
        dense_segment(2, 6, attention=(6, 12), mlp=(6, 3)),
        dense_segment(2, 1, phase="decode", context=7, forwards=5),
        next_prefill,
    ]


def test_padding_is_taken_from_the_head_s_last_run_and_not_from_checks(dense_segment):
    """Checks are of tokens that predict, of which none is padding."""
    (useful,) = unpadded([dense_segment(2, 20, phase="score", padding=10, head=20 + 6, checks=6)])
    assert (useful.head, useful.checks) == (10 + 6, 6)


def test_dense_has_in_its_cache_what_the_row_read_and_wrote() -> None:
    """Whatever a method keeps of it: a cache that was trimmed is a saving over dense on the same tokens."""
    layers = {"attention": (4, 4), "mlp": (4, 4), "attention_reads": (0.5, 0.5), "mlp_reads": (0.5, 0.5)}
    step = {name: (1, 1) if isinstance(amounts[0], int) else amounts for name, amounts in layers.items()}
    prefill = Segment("prefill", 4, 0, 4, 1, 2, **layers, head=1, head_reads=0.5)
    whole = Segment("decode", 1, 0, 5, 3, 2, **step, head=1, head_reads=0.5)
    trimmed = [replace(whole, context=3, forwards=1)] * 3
    shown = [replace(whole, keys=(2, 5))]  # attention is shown less than is kept
    fixed = [replace(whole, keys=(16, 16))]  # a cache of fixed size is dense's too
    assert row_as_dense([prefill, whole]) == [prefill, whole]
    assert [each.context for each in row_as_dense([prefill, *trimmed])] == [4, 5, 6, 7]
    assert row_as_dense([prefill, *shown]) == [prefill, whole]
    assert row_as_dense([prefill, *fixed]) == [prefill, *fixed]
    again = replace(prefill, phase="decode", queries=6, context=6)  # nothing is cached: all is read again
    assert [each.context for each in row_as_dense([prefill, again])] == [4, 6]


def test_dense_reads_every_weight_once_and_adds_nothing() -> None:
    routed = Segment(
        *("prefill", 4, 0, 4, 1, 2),
        attention=(0, 8),
        mlp=(4, 8),
        attention_reads=(0.0, 2.0),
        mlp_reads=(1.0, 2.0),
        head=3,
        checks=2,
        head_reads=1.5,
        fill=(4, 0),
        extra={"fill": Extra(4, 1, 7, 1.0), "router": Extra(4, 1, 9, 2.0)},
        own={"mlp": {1: Work(5, 2.0)}},
    )
    dense = as_dense(routed)
    assert dense.attention == dense.mlp == (4, 4)
    assert dense.attention_reads == dense.mlp_reads == (0.5, 0.5)
    assert (dense.head, dense.checks, dense.head_reads) == (1, 0, 0.5)
    assert (dense.fill, dense.extra, dense.own) == ((), {}, {})


def test_guesses_count_in_what_ran_and_dense_makes_none(dense_segment):
    """Four tokens are guessed at half the depth and looked at together with the one before: three stay."""
    prefill = dense_segment(2, 10)
    draft = dense_segment(2, 1, phase="draft", context=11, forwards=4, attention=(1, 0), mlp=(1, 0))
    verify = dense_segment(2, 5, phase="verify", context=15, head=5, kept=3)
    step = dense_segment(2, 1, phase="decode", context=14)
    row = [prefill, draft, verify, step]
    assert row_as_dense(row) == [
        prefill,
        dense_segment(2, 1, phase="decode", context=11, forwards=3),
        step,
    ]
    written = depth(row, "decode", "draft", "verify")
    assert (written.executed, written.dense) == (4 * 1 + 5 * 2 + 1 * 2, (3 + 1) * 2)
    assert depth([replace(verify, kept=None)], "verify").mean == 1.0
    assert not ran_as_dense([prefill, replace(verify, kept=5)])
