"""Which keys are chosen: against the same choice written out by hand, key by key."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.methods.sparse.flex_prefill import holding
from harness.methods.sparse.vertical_slash import largest
from harness.model.sparse_attention import chunks, pages
from harness.model.sparse_attention.hard import hard
from harness.model.sparse_attention.index_lists import best
from harness.model.sparse_attention.summaries import means, product
from harness.model.sparse_attention.vertical_slash import column_and_diagonal_scores

ROWS, HEADS, KV_HEADS, KEYS, WIDTH = 2, 4, 2, 13, 6


def drawn(queries, keys=KEYS):
    draw = torch.Generator().manual_seed(1)
    shapes = ((HEADS, queries), (KV_HEADS, keys), (KV_HEADS, keys))
    return tuple(torch.randn(ROWS, *shape, WIDTH, generator=draw, dtype=torch.float64) for shape in shapes)


def causal(queries, keys=KEYS):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries).expand(ROWS, 1, -1, -1)


def test_a_page_is_bounded_from_above_and_the_best_are_read_with_the_last():
    q, k, v = drawn(3)
    size, first, own = 3, torch.tensor([0, 2]), torch.tensor([10, 11, 12])
    for row in range(ROWS):
        aligned = k[row : row + 1, :, first[row] :]
        full = aligned.shape[2] // size
        by_page = aligned[:, :, : full * size].unflatten(2, (full, size))
        scores = pages.scores(q[row : row + 1], *pages.bounds(by_page, v))
        grouped = q[row].view(KV_HEADS, 2, 3, 1, 1, WIDTH)
        products = (grouped * by_page[0][:, None, None]).sum(-1).amax(-1).mean(1)  # [kv heads, queries, pages]
        assert (scores[0] >= products - 1e-12).all()
        kept = pages.chosen(scores, first[row : row + 1], own, size=size, count=2)
        for kv in range(KV_HEADS):
            for query in range(3):
                place = int(own[query] - first[row])
                before = [page for page in range(full) if page < place // size]
                top = max(before, key=lambda page, at=scores[0, kv, query]: at[page])
                places = [*range(top * size, top * size + size), *range(place // size * size, place + 1)]
                read = [int(column) for column in kept[0, kv, query] if column >= 0]
                assert read == [int(first[row]) + each for each in places]


@pytest.mark.parametrize("shared", [True, False])
def test_a_list_has_the_highest_scores(shared):
    q, k, _ = drawn(2)
    readable = causal(2).clone()
    readable[1, :, :, :9] = False  # the second row has fewer keys than its list has places
    chosen = best(q, k, readable, 0.4, count=5, shared=shared)
    scores = (q.view(ROWS, KV_HEADS, 2, 2, WIDTH) @ k[:, :, None].mT * 0.4).masked_fill(
        ~readable[:, :, None], -torch.inf
    )
    of_lists = scores.softmax(-1).amax((1, 2), keepdim=True)[:, 0] if shared else scores.amax(2)
    for row in range(ROWS):
        for number in range(chosen.shape[1]):
            for query in range(2):
                allowed = [key for key in range(KEYS) if readable[row, 0, query, key]]
                wanted = sorted(allowed, key=lambda key, at=of_lists[row, number, query]: -at[key])[:5]
                assert [int(key) for key in chosen[row, number, query] if key >= 0] == sorted(wanted)


def test_columns_and_diagonals_are_means_of_probabilities():
    q, k, _ = drawn(4)
    columns, diagonals = column_and_diagonal_scores(q[:1], k[:1], 0.4)
    for head in range(HEADS):
        logits = (q[0, head] @ k[0, head // 2].T * 0.4).masked_fill(~causal(4)[0, 0], -torch.inf)
        p = logits.softmax(-1)
        torch.testing.assert_close(columns[head].double(), p.mean(0), atol=1e-6, rtol=1e-5)
        for distance in range(KEYS):
            along = [p[query, 9 + query - distance] for query in range(4) if 9 + query >= distance]
            assert float(diagonals[head, distance]) == pytest.approx(float(sum(along) / len(along)), abs=1e-6)


def test_the_largest_are_a_number_or_hold_a_share():
    scores = torch.tensor([[0.1, 0.5, 0.1, 0.3], [0.25, 0.25, 0.25, 0.25]])
    assert largest(scores, 2)[0].tolist() == [False, True, False, True]
    assert largest(scores, 9).all()
    assert holding(scores, 0.79, 1)[0].tolist() == [False, True, False, True]
    assert holding(scores, 0.4, 1)[0].tolist() == [False, True, False, False]
    assert holding(scores, 0.4, 2)[0].tolist() == [False, True, False, True]
    assert holding(scores, 0.6, 1)[1].sum() == 3


def test_chunks_are_chosen_among_those_before_the_window():
    scores = torch.tensor([5.0, 1, 3, 2, 9]).expand(1, 1, 2, 5)
    place = torch.tensor([9, 5])[None, None, :, None]
    chosen = chunks.chosen(scores, place, size=2, count=2, window=2)
    assert chosen[0, 0].tolist() == [[True, False, True, False, False], [True, True, False, False, False]]


@pytest.mark.parametrize(("count", "share"), [(3, 0.01), (1, 0.5), (2, 0.3)])
def test_hard_attention_reads_the_highest_scores(count, share):
    q, k, v = drawn(5)
    output, pairs = hard(q, k, v, causal(5), 0.4, count=count, share=share)
    assert pairs == ROWS * HEADS * 5 * KEYS
    for row in range(ROWS):
        for head in range(HEADS):
            for query in range(5):
                readable = KEYS - 4 + query
                scores = q[row, head, query] @ k[row, head // 2, :readable].T * 0.4
                top = scores.topk(max(count, math.ceil(share * readable)))
                expected = top.values.softmax(-1) @ v[row, head // 2, top.indices]
                torch.testing.assert_close(output[row, head, query], expected)


@pytest.mark.parametrize(("size", "queries"), [(1, KEYS), (KEYS, KEYS), (20, 3), (1, 1)])
def test_summaries_of_one_key_and_of_none_are_dense(size, queries):
    q, k, v = drawn(queries)
    blocks = [each[:, :, : KEYS // size * size].unflatten(2, (-1, size)) for each in (k, v)]
    output, _ = product(q, k, v, means(*blocks), size, 0.4)
    whole = (each.repeat_interleave(2, 1) for each in (k, v))
    expected = scaled_dot_product_attention(q, *whole, causal(queries), scale=0.4)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", [3, 4])
def test_summaries_are_read_once_for_a_block_and_cost_their_pairs(size):
    q, k, v = drawn(KEYS)
    blocks = [each[:, :, : KEYS // size * size].unflatten(2, (-1, size)) for each in (k, v)]
    output, pairs = product(q, k, v, means(*blocks), size, 0.4)
    for query in range(KEYS):
        block = query // size
        keys, values = (
            torch.cat(
                [each[:, :, : block * size].unflatten(2, (-1, size)).mean(3), each[:, :, block * size : query + 1]], 2
            )
            for each in (k, v)
        )
        scores = (q[:, :, query].view(ROWS, KV_HEADS, 2, WIDTH) @ keys.mT) * 0.4
        scores[..., :block] += math.log(size)
        expected = (scores.softmax(-1) @ values).view(ROWS, HEADS, WIDTH)
        torch.testing.assert_close(output[:, :, query], expected)
    runs = [range(start, min(start + size, KEYS)) for start in range(0, KEYS, size)]
    assert pairs == ROWS * HEADS * sum(len(run) * (run.start // size + len(run)) for run in runs)
    one, _ = product(q[:, :, -1:], k, v, means(*blocks), size, 0.4)
    torch.testing.assert_close(one, output[:, :, -1:])


def test_a_blocks_weight_lowers_the_error_on_noise():
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 2, 256, 16, generator=draw, dtype=torch.float64) for _ in range(3))
    dense = scaled_dot_product_attention(q, k, v, is_causal=True)
    blocks = [each.unflatten(2, (-1, 8)) for each in (k, v)]
    output, _ = product(q, k, v, means(*blocks), 8, 0.25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math, "log", lambda _: 0.0)
        unweighted, _ = product(q, k, v, means(*blocks), 8, 0.25)
    assert (output - dense).norm() < 0.7 * (unweighted - dense).norm()
