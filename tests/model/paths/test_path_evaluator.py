"""The fast evaluation of paths gives what the engine gives for one path and question at a time."""

import random
from itertools import chain

import pytest
import torch

from harness.model.paths.controller import FixedPaths
from harness.model.paths.layer_path import routed
from harness.model.paths.path_evaluator import PathEvaluator, unrolled
from harness.model.paths.texts import Texts
from harness.testing.tiny import tiny_decoder
from tests.model.conftest import variants


def _tokens(rng, length):
    return tuple(rng.randrange(3, 259) for _ in range(length))


def questions(seed=0):
    """Answers of several lengths, past a sliding window too, of one token, and of one beginning."""
    rng = random.Random(seed)
    prompts = [_tokens(rng, rng.randint(1, 12)) for _ in range(4)]
    made = [Texts(prompt, tuple(_tokens(rng, rng.randint(1, 9)) for _ in range(3))) for prompt in prompts]
    begun = _tokens(rng, 4)
    shared = (*(begun + _tokens(rng, 3) for _ in range(2)), begun[:2], begun, begun[:2] + _tokens(rng, 2))
    return [*made, Texts(_tokens(rng, 9), tuple(_tokens(rng, 1) for _ in range(4))), Texts(_tokens(rng, 7), shared)]


def written(seed=0):
    """Questions of one answer each: rows that are running text."""
    rng = random.Random(seed)
    return [Texts(_tokens(rng, rng.randint(4, 12)), (_tokens(rng, rng.randint(1, 9)),)) for _ in range(4)]


def paths(seed=1, count=8):
    rng = random.Random(seed)
    drawn = [tuple(rng.choice((0, 1, 1, 1, 2)) for _ in range(4)) for _ in range(count)]
    return [(1, 1, 1, 1), (0, 0, 0, 0), (2, 2, 2, 2), *drawn]


def naive(decoder, texts, path):
    """One answer at a time through the engine: log-probability, and how much of it greedy decoding writes."""
    scores = []
    with routed(decoder, FixedPaths((path,))), torch.no_grad():
        for answer in texts.answers:
            logits = decoder.module(torch.tensor([[*texts.prompt, *answer]]), use_cache=False).logits[0]
            logits = logits[len(texts.prompt) - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
            right = (logits.argmax(-1) == torch.tensor(answer)).long().cumprod(0).sum()
            scores.append((float(logprobs.sum()), int(right)))
    return scores


def assert_naive(decoder, group, asked, actual):
    for (question, path), scores in zip(asked, actual, strict=True):
        for scored, (logprob, greedy) in zip(scores, naive(decoder, group[question], path), strict=True):
            assert scored.logprob == pytest.approx(logprob, abs=1e-3)
            assert scored.greedy == greedy


@variants("make", [questions, written])
def test_scores_are_those_of_one_path_at_a_time(decoder, make):
    group = make()
    # the last three: long answers, answers of one token, answers of one beginning
    asked = [(question, path) for path in paths(count=2)[2:] for question in range(len(group))[-3:]]
    assert_naive(decoder, group, asked, PathEvaluator(decoder, group).evaluate(asked))


def test_scores_are_the_same_where_everything_is_forgotten():
    decoder, group = tiny_decoder("llama"), questions()
    asked = [(question, path) for path in paths(count=2) for question in range(len(group))]
    assert_naive(decoder, group, asked, PathEvaluator(decoder, group, memory=0).evaluate(asked))


def test_answers_share_a_row_and_what_they_begin_with():
    texts = Texts((5, 6, 7), ((10, 11, 12), (10, 11, 13), (10, 14, 15), (16,)))
    assert texts.row == (5, 6, 7, 10, 11, 14)
    assert texts.positions == (0, 1, 2, 3, 4, 4)
    assert texts.branching
    assert not Texts((5, 6), ((10, 11, 12), (10, 11, 13), (14,))).branching
    assert [texts.logit_indices(answer) for answer in texts.answers] == [[2, 3, 4], [2, 3, 4], [2, 3, 5], [2]]


def test_the_first_token_that_departs_is_where_generation_departs():
    decoder, rng = tiny_decoder("llama"), random.Random(3)
    prompt, path = _tokens(rng, 8), (1, 0, 2, 1)
    with routed(decoder, FixedPaths((path,))):
        decoder.module.generation_config.eos_token_id = None
        ids = torch.tensor([prompt])
        written = decoder.module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )[0, 8:].tolist()
    for same in (0, 3, 6):
        answer = (*written[:same], *((token + 1) % 250 + 5 for token in written[same:]))
        [[scored]] = PathEvaluator(decoder, [Texts(prompt, (answer,))]).evaluate([(0, path)])
        assert scored.greedy == same
        assert scored.departs == (written[same] if same < 6 else None)


def test_a_common_beginning_is_run_once():
    decoder = tiny_decoder("llama")
    evaluator = PathEvaluator(decoder, [Texts((5, 6, 7), ((8,),))])
    evaluator.evaluate([(0, (1, 1, 1, 1))])
    assert evaluator.layers_run == 4
    evaluator.evaluate([(0, (1, 1, 0, 1)), (0, (1, 1, 1, 0)), (0, (1, 1, 1, 2))])
    assert evaluator.layers_run == 4 + 1 + 0 + 1
    evaluator.evaluate([(0, (1, 1, 0, 1))] * 3)
    assert evaluator.layers_run == 6


def test_memory_is_bounded_and_costs_only_time():
    decoder, group = tiny_decoder("llama"), questions()
    asked = [(question, path) for path in paths() for question in range(len(group))]
    small, large = PathEvaluator(decoder, group, memory=20_000), PathEvaluator(decoder, group)
    for begin in range(0, len(asked), 6):
        actual, expected = (each.evaluate(asked[begin : begin + 6]) for each in (small, large))
        for actual_score, expected_score in zip(chain(*actual), chain(*expected), strict=True):
            assert (actual_score.greedy, actual_score.tokens) == (expected_score.greedy, expected_score.tokens)
            assert actual_score.logprob == pytest.approx(expected_score.logprob, abs=1e-3)
        assert sum(state.nbytes for state in small._states.values()) <= 20_000
    assert small.layers_run > large.layers_run


def test_states_are_what_each_layer_reads():
    decoder, group, path = tiny_decoder("qwen3"), questions(), (1, 0, 2, 1)
    seen = {}

    class Watch(FixedPaths):
        def decide(self, layer, hidden, prompts):
            seen[layer] = hidden
            return [path[layer : layer + 1]]

    texts = group[0]
    with routed(decoder, Watch((path,))), torch.no_grad():
        decoder.module(torch.tensor([texts.prompt]))
    states = PathEvaluator(decoder, group).states(0, path)[:4]
    for layer, state in enumerate(states):
        torch.testing.assert_close(state, seen[layer][0], rtol=1e-5, atol=1e-5)


def test_a_path_in_order():
    assert unrolled((1, 0, 2, 1)) == (0, 2, 2, 3)
