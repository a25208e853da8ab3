"""Batches as HFLM forms them: longest first, answers of one token to one text together."""

from types import SimpleNamespace

from harness.evaluate.batches import generation_batches, request_keys, scored_row, scoring_batches
from harness.evaluate.journal import PADDING

REQUESTS = [
    (None, [5, 6, 7], [8]),
    (None, [5], [6, 7]),
    (None, [5, 6, 7], [9]),
    (None, [5, 6], [7, 8, 9, 10]),
]


def test_requests_that_share_a_text_share_a_row():
    assert list(scoring_batches(REQUESTS, 2, shared=True)) == [[[3], [0, 2]], [[1]]]
    assert list(scoring_batches(REQUESTS, 2, shared=False)) == [[[3], [0]], [[2], [1]]]


def test_the_last_token_is_not_read_and_long_texts_are_cut_from_the_left():
    assert scored_row(REQUESTS[3], 10) == ([5, 6, 7, 8, 9], 2)
    assert scored_row(REQUESTS[3], 4) == ([6, 7, 8, 9], 1)
    assert scored_row(REQUESTS[3], 3) == ([7, 8, 9], 0)


def test_prompts_of_unlike_settings_are_not_mixed():
    prompts = [("a", {"until": ["x"]}), ("bbb", {"until": ["y"]}), ("cc", {"until": ["x"]})]
    assert sorted(generation_batches(prompts, 8, list)) == [[1], [2, 0]]


def test_repetitions_are_turns_and_repetitions_beyond_them_padding():
    instance = SimpleNamespace(task_name="t", doc_id=3, idx=1, repeats=2, request_type="generate_until")
    keys = request_keys([instance] * 3)
    assert [key.turn for key in keys] == [0, 1, PADDING]
    assert {key[:3] for key in keys} == {("t", 3, 1)}
