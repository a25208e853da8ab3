"""Contexts read first, and their continuations against the cache, against one forward without a cache."""

from itertools import groupby

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from harness.contract.decoder import Manner, Row
from harness.contract.prepared import Prepared
from harness.contract.stack import parse
from harness.core.errors import UnsupportedModelError
from harness.measure.flops import executed_flops
from harness.measure.shape import ModelShape
from harness.measure.trace import Tracer
from harness.model.paths.controller import SkipPaths
from harness.model.paths.layer_path import routed
from harness.model.reading import Cached, Context, Continuation, read, reads_together
from harness.testing.subject import Subject
from harness.testing.tiny import FAMILIES, tiny_decoder

MANNERS = (Manner(), Manner(stepwise=True), Manner(whole=True, alone=True))
PROMPTS = ((9, (5, 3, 1)), (12, (2, 2)), (12, (1, 4)), (1, (3,)))
"""Tokens of each prompt, beyond the windows of hybrid models, and of its continuations."""


def words(length, seed):
    return tuple(torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def document(number, prompt, answers, held):
    """A context that holds back so many tokens of the prompt."""
    first, last = prompt[: len(prompt) - held], prompt[len(prompt) - held :]
    texts = [(*last, *answer[:-1]) for answer in answers]
    continuations = [
        Continuation(Row("t", number, (part,), len(prompt), len(first) + len(text)), text, len(answer))
        for part, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    return Context(Row("t", number, (0,), len(prompt), len(first)), first, tuple(continuations))


def documents(held):
    prompts = [words(length, number) for number, (length, _) in enumerate(PROMPTS)]
    answers = [[words(n, 10 * number + n) for n in lengths] for number, (_, lengths) in enumerate(PROMPTS)]
    contexts = [document(number, *pair, held) for number, pair in enumerate(zip(prompts, answers, strict=True))]
    return prompts, answers, contexts


def answered(decoder, contexts, together):
    """Every continuation's logits, and the trace of everything."""
    logits, segments = {}, []
    groups = [list(group) for _, group in groupby(contexts, lambda context: len(context.tokens))]
    with Tracer(decoder) as tracer:
        for group in groups if together else [[context] for context in contexts]:
            for part in read(decoder, group):
                traces = tracer.collect()
                assert len(traces) == len(part.members)
                segments += [segment for row in traces for segment in row]
                logits |= {(group[number].row.document, index): own for (number, index), own in part.logits.items()}
    return logits, segments


@torch.no_grad()
def recomputed(decoder, prompt, answer):
    return decoder.module(torch.tensor([(*prompt, *answer[:-1])])).logits[0, -len(answer) :]


def require_recomputed(decoder, logits, prompts, answers):
    for number, (prompt, of_prompt) in enumerate(zip(prompts, answers, strict=True)):
        for index, answer in enumerate(of_prompt):
            expected = recomputed(decoder, prompt, answer)
            own = logits[number, index]
            assert own.shape == expected.shape
            assert torch.allclose(own.log_softmax(-1), expected.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_manner_gives_what_one_forward_gives(family):
    decoder = tiny_decoder(family)
    for manner in MANNERS:
        prompts, answers, contexts = documents(held=0 if manner.whole else 1)
        with decoder.scored(manner):
            logits, segments = answered(decoder, contexts, together=not manner.alone)
        require_recomputed(decoder, logits, prompts, answers)
        assert {segment.padding for segment in segments} == {0}
        assert {segment.phase for segment in segments} == {"prefill", "decode"}


def test_a_context_is_read_once_and_decoding_begins_after_it():
    decoder, seen = tiny_decoder("llama"), []

    def note(module, args, kwargs):
        context = decoder.context
        seen.append((tuple(kwargs["input_ids"].shape), context.kind, context.decoding, context.rows[0].prompt_length))

    handle = decoder.module.register_forward_pre_hook(note, with_kwargs=True)
    _, _, contexts = documents(held=1)
    answered(decoder, contexts[:1], together=True)
    handle.remove()
    # the prompt but its last token; then continuations of 1, 3 and 5 tokens, each without its last but after that token
    lengths = (1, 3, 5)
    assert seen == [((1, 8), "score", False, 9), *(((1, length), "score", True, 9) for length in lengths)]


def test_as_much_is_counted_together_as_one_by_one():
    decoder = tiny_decoder("mistral")
    shape, (_, _, contexts) = ModelShape.of(decoder), documents(held=1)
    flops = []
    for manner in (Manner(), Manner(alone=True), Manner(stepwise=True)):
        with decoder.scored(manner):
            _, segments = answered(decoder, contexts, together=not manner.alone)
        flops.append(executed_flops(shape, segments).parts())
    linear = [{name: count for name, count in parts.items() if "attention" not in name} for parts in flops]
    assert flops[0] == flops[1]
    assert linear[0]["mlp"] == linear[2]["mlp"]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_path_is_decided_from_the_whole_prompt_and_kept(family):
    decoder = tiny_decoder(family)
    prompts, answers, contexts = documents(held=0)

    def path(digest):
        return (1, digest[0] % 2, digest[1] % 2, 1)

    with routed(decoder, SkipPaths(path)) as engine, decoder.scored(Manner(whole=True)):
        assert not reads_together(decoder)
        logits, _ = answered(decoder, contexts, together=False)
        paths = {}
        for number, prompt in enumerate(prompts):
            row = Row("t", number, (0,), len(prompt), len(prompt))
            with decoder.serving([row], "score"), torch.no_grad():
                decoder.module(torch.tensor([prompt]))
            paths[number] = engine.last_paths
            for index, answer in enumerate(answers[number]):
                text = (*prompt, *answer[:-1])
                with decoder.serving([Row("t", number, (0,), len(prompt), len(text))], "score"):
                    expected = recomputed(decoder, prompt, answer)
                assert engine.last_paths == paths[number]
                assert torch.allclose(logits[number, index].log_softmax(-1), expected.log_softmax(-1), atol=1e-4)
    assert len(set(map(str, paths.values()))) > 1


@pytest.mark.parametrize("method", ["calm", "mue", "random-skip", "layer-drop"])
def test_methods_that_act_in_both_phases_give_their_scores_of_one_forward(method):
    decoder, subject = tiny_decoder("llama"), Subject.of(method)
    with subject.attached(decoder):
        prompts, answers, contexts = documents(held=0 if decoder.manner.whole else 1)
        logits, _ = answered(decoder, contexts, together=reads_together(decoder))
        for number, prompt in enumerate(prompts):
            for index, answer in enumerate(answers[number]):
                text = (*prompt, *answer[:-1])
                with decoder.serving([Row("t", number, (0,), len(prompt), len(text))], "score"):
                    expected = recomputed(decoder, prompt, answer)
                assert torch.allclose(logits[number, index].log_softmax(-1), expected.log_softmax(-1), atol=1e-4)


class Counting(DynamicLayer):
    """A layer that keeps something of its own for each row, which the class above does not select."""

    def __init__(self):
        super().__init__()
        self.positions = []


class Selecting(Counting):
    def batch_select_indices(self, indices):
        super().batch_select_indices(indices)
        self.positions = [self.positions[index] for index in indices] if self.positions else []


class Refusing(DynamicCache):
    def batch_select_indices(self, indices):
        raise NotImplementedError


@pytest.mark.parametrize(("layer", "selects"), [(Counting, False), (Selecting, True), (None, False)])
def test_a_cache_of_a_methods_own_is_copied_unless_it_can_select_rows(layer, selects, monkeypatch):
    decoder = tiny_decoder("llama")

    def prepare(config, arguments, *_):
        cache = Refusing(config=decoder.config) if layer is None else DynamicCache(config=decoder.config)
        if layer is not None:
            cache.layers = [layer() for _ in cache.layers]
        arguments["past_key_values"] = cache

    monkeypatch.setattr(decoder.module, "_prepare_cache_for_generation", prepare)
    assert reads_together(decoder) is selects
    prompts, answers, contexts = documents(held=1)
    logits, _ = answered(decoder, contexts, together=selects)
    require_recomputed(decoder, logits, prompts, answers)


def test_what_was_taken_out_of_the_cache_is_missing_for_all_continuations_alike():
    """Continuations do not see each other's tokens, nor what a method took out for one of them."""
    decoder = tiny_decoder("llama")
    _, _, contexts = documents(held=1)
    dense, _ = answered(decoder, contexts[:1], together=True)

    def evict(module, args, kwargs, output):
        if not decoder.context.decoding:
            for layer in kwargs["past_key_values"].layers:
                layer.keys, layer.values = layer.keys[..., -3:, :], layer.values[..., -3:, :]

    for manner in (Manner(), Manner(stepwise=True), Manner(alone=True)):
        # before the context counts the forward, as a method's hook that was there first
        handle = decoder.module.register_forward_hook(evict, with_kwargs=True)
        with decoder.scored(manner):
            logits, _ = answered(decoder, contexts[:1], together=True)
        handle.remove()
        assert not any(torch.allclose(own, dense[member], atol=1e-2) for member, own in logits.items())
        if manner == Manner():
            first = logits
        for member, own in logits.items():
            assert torch.allclose(own, first[member], atol=1e-4)


def test_a_model_without_a_cache_is_refused_in_a_sentence(monkeypatch):
    decoder = tiny_decoder("llama")
    monkeypatch.setattr(decoder.module, "_prepare_cache_for_generation", lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="keeps no cache"):
        Cached(decoder, 1, 1)


@pytest.mark.parametrize("method", ["kv-evict:scorer=knorm,budget=0.5", "streaming:sinks=1,window=16"])
def test_where_no_context_is_read_first_there_is_nothing_to_press(method):
    """Contexts of one token, and those that are held back whole; a press that acts at each token still does."""
    decoder = tiny_decoder("llama")
    prompts, answers = [words(1, 5), words(7, 6)], [[words(3, 7), words(5, 8), words(1, 9)]] * 2
    contexts = [
        document(number, prompt, own, held=len(prompt))
        for number, (prompt, own) in enumerate(zip(prompts, answers, strict=True))
    ]
    with parse(method).attached(decoder, lambda index: Prepared()):
        assert decoder.manner.stepwise
        logits, _ = answered(decoder, contexts, together=True)
    require_recomputed(decoder, logits, prompts, answers)


@pytest.mark.parametrize(
    "settings", [{"cache_implementation": "static"}, {"cache_implementation": "hybrid"}, {"num_beams": 3}]
)
def test_the_cache_is_the_checkpoints_own(settings):
    decoder = tiny_decoder("llama")
    for name, value in settings.items():
        setattr(decoder.module.generation_config, name, value)
    together = reads_together(decoder)
    assert together != (settings.get("cache_implementation") == "static")
    for manner in (Manner(), Manner(stepwise=True), Manner(whole=True)):
        prompts, answers, contexts = documents(held=0 if manner.whole else 1)
        with decoder.scored(manner):
            logits, _ = answered(decoder, contexts, together=together)
        require_recomputed(decoder, logits, prompts, answers)
